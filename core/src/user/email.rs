//! E-mail addresses: what the HTML standard's e-mail field takes, so that a browser and this service agree.
//!
//! Invariant: an accepted address is ASCII, so that "the same in any case" means the same here, in SQL's `lower`
//! under every locale, and in the hashed subject of a log-in budget. (A domain with other letters has an ASCII form.)

use crate::error::FieldError;

/// The longest address that a mail server takes (RFC 5321, path limit less the brackets).
const EMAIL_MAX: usize = 254;

/// The longest part before the `@` (RFC 5321).
const LOCAL_MAX: usize = 64;

/// Whether `email` is an address.
///
/// # Errors
/// The fault, with the pointer `/email`.
pub fn check(email: &str) -> Result<(), FieldError> {
    let fault = |code, detail: &str| {
        Err(FieldError {
            pointer: "/email".to_owned(),
            code,
            detail: detail.to_owned(),
        })
    };
    if email.is_empty() {
        return fault("required", "An e-mail address is needed.");
    }
    if email.len() > EMAIL_MAX {
        return fault("too_long", "An e-mail address has at most 254 characters.");
    }
    let well_formed = email.split_once('@').is_some_and(|(local, domain)| {
        (1..=LOCAL_MAX).contains(&local.len()) && local.bytes().all(is_local) && is_domain(domain)
    });
    if well_formed {
        Ok(())
    } else {
        fault(
            "malformed",
            "This is not an e-mail address: it needs one @ with a name before it and a domain behind it, \
             and no blanks or letters outside ASCII.",
        )
    }
}

/// Whether `email` could be in the database at all, also as the address of an anonymised account.
pub(super) fn is_storable(email: &str) -> bool {
    email.is_ascii() && email.len() <= EMAIL_MAX && !email.bytes().any(|byte| byte.is_ascii_control())
}

/// HTML standard, "valid e-mail address": RFC 5322's `atext` and the dot.
fn is_local(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".!#$%&'*+/=?^_`{|}~-".contains(&byte)
}

fn is_domain(domain: &str) -> bool {
    // The domain of anonymised accounts: an address there could keep one from being anonymised.
    if domain.eq_ignore_ascii_case("invalid") {
        return false;
    }
    domain.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_other_text() {
        for good in [
            "a@b",
            "Ann.O'Neil+x@shop.example",
            "admin@localhost",
            "x@xn--cdigo-0ra.example",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let long_local = format!("{}@b.example", "a".repeat(65));
        let long = format!("a@{}.example", "b.".repeat(130));
        for bad in [
            "",
            "@",
            "a@",
            "@b",
            "a",
            "a@b@c",
            "a b@c",
            "a@b c",
            "a@.b",
            "a@b.",
            "a@-b",
            "a@b..c",
            "a\0@b",
            "a\n@b",
            "ä@b",
            "deleted-1@Invalid",
            &long_local,
            &long,
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
