//! ETags from version numbers, and the check of `If-Match` (RFC 9110, section 13).
//!
//! Invariant: a tag is strong and names one version of one object; a weak or unreadable tag never matches `If-Match`.

use coupon_core::Code;

use crate::problem::Problem;

/// The ETag of a version.
pub fn tag(version: i64) -> String {
    format!("\"{version}\"")
}

/// Whether a change may go on: without `If-Match`, with `*`, or if one of its tags is the version's.
///
/// # Errors
/// `stale` (412) otherwise.
pub fn check(if_match: Option<&str>, version: i64) -> Result<(), Problem> {
    let current = tag(version);
    match if_match.map(str::trim) {
        None | Some("*") => Ok(()),
        Some(tags) if tags.split(',').any(|tag| tag.trim() == current) => Ok(()),
        Some(_) => Err(Problem::new(
            Code::Stale,
            "The object has changed since you read it; read it again and repeat.",
        )),
    }
}

/// Whether the client has this representation already (`If-None-Match`, weak comparison), so 304 will do.
pub fn is_known(if_none_match: Option<&str>, current: &str) -> bool {
    if_none_match.is_some_and(|tags| {
        tags.split(',')
            .map(str::trim)
            .any(|tag| tag == "*" || tag.trim_start_matches("W/") == current)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_strong_tag_of_this_version_lets_a_change_pass() {
        for fine in [None, Some("*"), Some("\"7\""), Some("\"6\", \"7\"")] {
            assert!(check(fine, 7).is_ok(), "{fine:?}");
        }
        for stale in ["\"6\"", "W/\"7\"", "7", "", "\"77\""] {
            assert_eq!(check(Some(stale), 7).unwrap_err().code(), Code::Stale, "{stale}");
        }
    }

    #[test]
    fn a_known_representation_is_recognised_weakly() {
        assert!(is_known(Some("W/\"7\""), "\"7\"") && is_known(Some("\"1\", \"7\""), "\"7\""));
        assert!(!is_known(None, "\"7\"") && !is_known(Some("\"8\""), "\"7\""));
    }
}
