//! The text a run file was read from, and the places in it.

use std::ops::Range;

/// The text of a run file, followed by the `--set` overrides, as one text that spans point into.
#[derive(Debug)]
pub(crate) struct Source {
    file: String,
    text: String,
    overrides: Vec<Range<usize>>,
}

/// Where a span lies, for people.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// In the file: line and column count from one, `text` is the whole line.
    Line {
        line: usize,
        column: usize,
        text: &'a str,
    },
    /// In an override of the command line, given as it was written.
    Override { text: &'a str, column: usize },
}

impl Source {
    pub(crate) fn new(file: String, text: String) -> Self {
        Self {
            file,
            text,
            overrides: Vec::new(),
        }
    }

    /// The file's name as the user gave it.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// Everything: the file and the overrides added so far.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Adds the text of one `--set`; its spans are shifted by the returned offset.
    pub(crate) fn add_override(&mut self, text: &str) -> usize {
        self.text.push('\n');
        let start = self.text.len();
        self.text.push_str(text);
        self.overrides.push(start..self.text.len());
        start
    }

    /// Where the file's own text ends.
    pub(crate) fn end_of_file(&self) -> usize {
        let first = self.overrides.first();
        first.map_or(self.text.len(), |first| first.start)
    }

    pub(crate) fn place(&self, offset: usize) -> Place<'_> {
        let within = |range: &&Range<usize>| range.start <= offset && offset <= range.end;
        if let Some(range) = self.overrides.iter().find(within) {
            return Place::Override {
                text: &self.text[range.clone()],
                column: offset - range.start + 1,
            };
        }
        let end_of_file = self
            .overrides
            .first()
            .map_or(self.text.len(), |range| range.start - 1);
        let offset = offset.min(end_of_file);
        let start = self.text[..offset].rfind('\n').map_or(0, |at| at + 1);
        let rest = &self.text[start..end_of_file];
        Place::Line {
            line: self.text[..offset].matches('\n').count() + 1,
            column: self.text[start..offset].chars().count() + 1,
            text: rest.lines().next().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_line_of_the_file_or_an_override() {
        let mut source = Source::new("a.toml".into(), "x = 1\ny = 2\n".into());
        let shift = source.add_override("z=3");
        let line = |line, column, text| Place::Line { line, column, text };
        assert_eq!(source.place(0), line(1, 1, "x = 1"));
        assert_eq!(source.place(10), line(2, 5, "y = 2"));
        assert_eq!(source.place(12), line(3, 1, ""));
        let text = "z=3";
        assert_eq!(source.place(shift + 2), Place::Override { text, column: 3 });
    }
}
