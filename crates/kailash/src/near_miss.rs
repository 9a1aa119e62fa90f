//! The name that was probably meant.

/// The one of `names` that `given` was probably meant to be.
///
/// ```
/// use kailash::near_miss::near_miss;
///
/// assert_eq!(near_miss("databse", ["api", "cache", "database"]), Some("database"));
/// assert_eq!(near_miss("colour", ["api", "cache", "database"]), None);
/// ```
#[must_use]
pub fn near_miss<'n>(given: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let given = given.to_lowercase();
    let distances = names.into_iter().map(|name| {
        let distance = strsim::damerau_levenshtein(&given, &name.to_lowercase());
        (distance, name)
    });
    distances
        .filter(|(distance, name)| *distance <= (name.len().max(given.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_close_to_what_was_given() {
        let names = ["failure_threshold", "success_threshold", "url"];
        assert_eq!(near_miss("failure_treshold", names), Some(names[0]));
        assert_eq!(near_miss("Success_threshold", names), Some(names[1]));
        assert_eq!(near_miss("uri", names), Some("url"));
        assert_eq!(near_miss("colour", names), None);
    }
}
