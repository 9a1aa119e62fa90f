//! Figures, bars and verdicts as Markdown that also reads well on a terminal.

use std::error::Error;
use std::fmt::Write;

use serde_json::Value;

/// Whose code a case ran.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Floor,
    Ours,
    Peer,
}

/// One case and what was measured of it.
pub(super) struct Row {
    table: String,
    case: String,
    whose: Whose,
    /// Nanoseconds per call of each repeat in rising order, or the bytes that it holds.
    figures: Vec<f64>,
    unit: Unit,
    /// Per call.
    allocations: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Nanos,
    Bytes,
}

impl Row {
    pub(super) fn of_calls(call: &Value) -> Option<Self> {
        let figures = call["nanos"].as_array()?.iter();
        let mut figures: Vec<f64> = figures.filter_map(Value::as_f64).collect();
        figures.sort_by(f64::total_cmp);
        Some(Self {
            table: call["table"].as_str()?.to_owned(),
            case: call["case"].as_str()?.to_owned(),
            whose: match call["whose"].as_str()? {
                "floor" => Whose::Floor,
                "ours" => Whose::Ours,
                _ => Whose::Peer,
            },
            figures,
            unit: Unit::Nanos,
            allocations: call["allocations"].as_f64(),
        })
    }

    /// The Python bench tells medians only.
    pub(super) fn of_python(row: &Value) -> Option<Self> {
        let case = row["name"].as_str()?;
        Some(Self {
            table: format!(
                "Python, {}, {}",
                row["kind"].as_str()?,
                row["case"].as_str()?
            ),
            case: case.to_owned(),
            whose: match case {
                "bare" | "pass-through" | "asyncio.to_thread" => Whose::Floor,
                case if case.starts_with("kailash") => Whose::Ours,
                _ => Whose::Peer,
            },
            figures: vec![row["ns"].as_f64()?],
            unit: Unit::Nanos,
            allocations: None,
        })
    }

    pub(super) fn of_memory(memory: &Value) -> Option<Self> {
        Some(Self {
            table: "memory".to_owned(),
            case: memory["case"].as_str()?.to_owned(),
            whose: Whose::Ours,
            figures: vec![memory["bytes"].as_f64()?],
            unit: Unit::Bytes,
            allocations: None,
        })
    }

    fn median(&self) -> f64 {
        let middle = self.figures.len() / 2;
        match self.figures.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => self.figures[middle],
            _ => f64::midpoint(self.figures[middle - 1], self.figures[middle]),
        }
    }

    fn least(&self) -> Option<f64> {
        self.figures
            .first()
            .copied()
            .filter(|_| self.figures.len() > 1)
    }
}

/// What a case is held to.
pub(super) struct Bar {
    table: String,
    case: String,
    limits: Vec<Limit>,
    /// Why a figure misses it, where one does.
    reason: Option<String>,
}

enum Limit {
    Nanos(f64),
    TimesFloor(f64),
    OverFloor(f64),
    /// What this other case of the table takes.
    Case(String),
    Allocations(f64),
    Bytes(f64),
}

impl Bar {
    /// Reads one entry of `bars.json`.
    pub(super) fn read(bar: &Value) -> Result<Self, Box<dyn Error>> {
        let bar = bar.as_object().ok_or("a bar is no object")?;
        let (mut table, mut case, mut reason) = (None, None, None);
        let mut limits = Vec::new();
        for (name, value) in bar {
            let number = || value.as_f64().ok_or_else(|| format!("{name}: no number"));
            match name.as_str() {
                "table" => table = value.as_str(),
                "case" => case = value.as_str(),
                "reason" => reason = value.as_str(),
                "no_more_than" => {
                    let case = value.as_str().ok_or("no_more_than: no case")?;
                    limits.push(Limit::Case(case.to_owned()));
                }
                "nanos" => limits.push(Limit::Nanos(number()?)),
                "times_floor" => limits.push(Limit::TimesFloor(number()?)),
                "over_floor" => limits.push(Limit::OverFloor(number()?)),
                "allocations" => limits.push(Limit::Allocations(number()?)),
                "bytes" => limits.push(Limit::Bytes(number()?)),
                _ => return Err(format!("a bar has no field {name}").into()),
            }
        }
        Ok(Self {
            table: table.ok_or("a bar names no table")?.to_owned(),
            case: case.ok_or("a bar names no case")?.to_owned(),
            limits,
            reason: reason.map(str::to_owned),
        })
    }

    fn text(&self) -> String {
        let limits = self.limits.iter().map(|limit| match limit {
            Limit::Nanos(nanos) => format!("{nanos} ns"),
            Limit::TimesFloor(times) => format!("{times} × floor"),
            Limit::OverFloor(nanos) => format!("floor + {nanos} ns"),
            Limit::Allocations(allocations) => format!("{allocations} allocations"),
            Limit::Case(case) => case.clone(),
            Limit::Bytes(bytes) => shown(*bytes, Unit::Bytes),
        });
        let limits: Vec<String> = limits.collect();
        format!("≤ {}", limits.join(", "))
    }

    fn is_met(&self, row: &Row, table: &[&Row]) -> bool {
        let (median, floor) = (row.median(), floor(table));
        // A limit that cannot be compared is not met.
        let is_within =
            |limit: f64, figure: Option<f64>| figure.is_some_and(|figure| figure <= limit);
        self.limits.iter().all(|limit| match limit {
            Limit::Nanos(limit) | Limit::Bytes(limit) => median <= *limit,
            Limit::TimesFloor(limit) => is_within(*limit, floor.map(|floor| median / floor)),
            Limit::OverFloor(limit) => is_within(*limit, floor.map(|floor| median - floor)),
            Limit::Case(case) => {
                let other = table.iter().find(|other| other.case == *case);
                other.is_some_and(|other| median <= other.median())
            }
            Limit::Allocations(limit) => is_within(*limit, row.allocations),
        })
    }
}

fn floor(table: &[&Row]) -> Option<f64> {
    let floor = table.iter().find(|row| row.whose == Whose::Floor)?;
    Some(floor.median())
}

const HEAD: [&str; 8] = [
    "case",
    "median",
    "least",
    "× floor",
    "× best peer",
    "allocations",
    "bar",
    "verdict",
];

/// Everything as one page.
pub(super) fn render(machine: &str, rows: &[Row], bars: &[Bar]) -> Result<String, Box<dyn Error>> {
    let mut page = format!(
        "# What a call costs\n\n\
         `cargo xtask bench` measures all of this in one run and writes this page.\n\
         Cases take turns; the median and the least of all repeats are shown, per call and thread.\n\
         The floor of a table is its first row: the least that the machine asks for such a call.\n\n\
         {machine}\n"
    );
    let mut missed = Vec::new();
    let mut tables: Vec<&str> = Vec::new();
    for row in rows {
        if !tables.contains(&row.table.as_str()) {
            tables.push(&row.table);
        }
    }
    for table in tables {
        let of_table: Vec<&Row> = rows.iter().filter(|row| row.table == table).collect();
        let cells = cells(&of_table, bars, &mut missed);
        write!(page, "\n## {table}\n\n{}", aligned(&cells))?;
    }
    if !missed.is_empty() {
        write!(page, "\n## Missed bars\n\n{}\n", missed.join("\n"))?;
    }
    let named = |bar: &Bar| {
        let mut of_bar = rows.iter().filter(|row| row.table == bar.table);
        of_bar.any(|row| row.case == bar.case)
    };
    let unmeasured: Vec<String> = bars
        .iter()
        .filter(|bar| !named(bar))
        .map(|bar| format!("- {}, {}: {}", bar.table, bar.case, bar.text()))
        .collect();
    if !unmeasured.is_empty() {
        write!(
            page,
            "\n## Bars not measured in this run\n\n{}\n",
            unmeasured.join("\n")
        )?;
    }
    Ok(page)
}

fn cells(rows: &[&Row], bars: &[Bar], missed: &mut Vec<String>) -> Vec<[String; HEAD.len()]> {
    let floor = floor(rows);
    let peers = rows.iter().filter(|row| row.whose == Whose::Peer);
    let best_peer = peers.map(|row| row.median()).min_by(f64::total_cmp);
    let times = |row: &Row, of: Option<f64>| {
        of.map_or(String::new(), |of| format!("{:.2}", row.median() / of))
    };
    let of_row = |row: &&Row| {
        let bar = bars
            .iter()
            .find(|bar| bar.table == row.table && bar.case == row.case);
        let verdict = match bar {
            None => "",
            Some(bar) if bar.is_met(row, rows) => "met",
            Some(bar) => {
                let reason = bar
                    .reason
                    .as_deref()
                    .unwrap_or("the reason is not known yet");
                let figure = shown(row.median(), row.unit);
                let (table, case, bar) = (&row.table, &row.case, bar.text());
                missed.push(format!("- {table}, {case}: {figure}, bar {bar}: {reason}"));
                "MISSED"
            }
        };
        [
            row.case.clone(),
            shown(row.median(), row.unit),
            row.least()
                .map_or(String::new(), |least| shown(least, row.unit)),
            times(row, floor.filter(|_| row.unit == Unit::Nanos)),
            times(row, best_peer.filter(|_| row.whose == Whose::Ours)),
            row.allocations
                .map_or(String::new(), |allocations| format!("{allocations}")),
            bar.map_or(String::new(), Bar::text),
            verdict.to_owned(),
        ]
    };
    rows.iter().map(of_row).collect()
}

fn shown(figure: f64, unit: Unit) -> String {
    match unit {
        Unit::Nanos if figure >= 1000.0 => format!("{:.2} µs", figure / 1000.0),
        Unit::Nanos => format!("{figure:.1} ns"),
        Unit::Bytes if figure >= 1e6 => format!("{:.0} MB", figure / 1e6),
        Unit::Bytes => format!("{figure:.0} B"),
    }
}

fn aligned(cells: &[[String; HEAD.len()]]) -> String {
    let width = |column: usize| {
        let widths = cells.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0).max(HEAD[column].chars().count())
    };
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    // Words stand on the left, numbers on the right.
    let is_word = |column: usize| column == 0 || column >= 6;
    let line = |words: [&str; HEAD.len()]| {
        let padded = words.iter().zip(&widths).enumerate();
        let padded: Vec<String> = padded
            .map(|(column, (word, &width))| match is_word(column) {
                true => format!("{word:<width$}"),
                false => format!("{word:>width$}"),
            })
            .collect();
        format!("| {} |\n", padded.join(" | "))
    };
    let rules = widths
        .iter()
        .enumerate()
        .map(|(column, &width)| match is_word(column) {
            true => "-".repeat(width + 2),
            false => format!("{}:", "-".repeat(width + 1)),
        });
    let mut table = line(HEAD);
    table += &format!("|{}|\n", rules.collect::<Vec<_>>().join("|"));
    for row in cells {
        table += &line(row.each_ref().map(String::as_str));
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(whose: &str, case: &str, nanos: [f64; 3]) -> Row {
        let row =
            json!({"table": "t", "case": case, "whose": whose, "nanos": nanos, "allocations": 0});
        Row::of_calls(&row).unwrap()
    }

    fn page(bar: Value) -> String {
        let rows = [
            row("floor", "bare", [2.0, 3.0, 2.0]),
            row("ours", "kailash", [9.0, 4.0, 5.0]),
            row("peer", "slow", [20.0, 20.0, 20.0]),
            row("peer", "fast", [10.0, 10.0, 10.0]),
        ];
        render("a machine", &rows, &[Bar::read(&bar).unwrap()]).unwrap()
    }

    #[test]
    fn a_row_shows_its_median_its_ratios_and_its_verdict() {
        let bar = |limit: &str, at_most: f64| {
            page(json!({"table": "t", "case": "kailash", limit: at_most, "reason": "so be it"}))
        };
        let met = bar("nanos", 5.0);
        let row = met.lines().find(|line| line.contains("kailash"));
        let row: Vec<&str> = row.unwrap().split_whitespace().collect();
        let expected = "| kailash | 5.0 ns | 4.0 ns | 2.50 | 0.50 | 0 | ≤ 5 ns | met |";
        assert_eq!(row.join(" "), expected);
        assert!(!met.contains("MISSED"), "{met}");
        for (limit, at_most) in [("nanos", 4.9), ("times_floor", 2.4), ("over_floor", 2.9)] {
            let missed = bar(limit, at_most);
            assert!(missed.contains("MISSED"), "{missed}");
            assert!(missed.contains(": so be it"), "{missed}");
        }
        for (limit, at_most) in [
            ("times_floor", 2.5),
            ("over_floor", 3.0),
            ("allocations", 0.0),
        ] {
            assert!(bar(limit, at_most).contains("| met "));
        }
    }

    #[test]
    fn a_bar_without_a_figure_is_told() {
        let page = page(json!({"table": "t", "case": "another", "nanos": 1}));
        assert!(
            page.contains("## Bars not measured in this run\n\n- t, another: ≤ 1 ns"),
            "{page}"
        );
    }
}
