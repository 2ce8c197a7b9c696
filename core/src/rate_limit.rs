//! How many requests somebody may make in a time: the setting, and what is told to clients of a limit.
//!
//! These limits are manners between neighbours: they keep one caller from taking the service from the others. They live
//! in the memory of each process and are forgotten with it. Guessing is bounded elsewhere, in the database
//! ([`crate::user::budget`]), by a switch of its own.
//!
//! The setting is `on`, `off`, or a list such as `writes=300/60, address=off`: a class, and its requests per seconds.
//! What the list leaves out keeps its default. To add a class: a variant of [`Class`], its line in [`Class::ALL`] and in
//! [`Class::default_quota`], its row in docs/operations.md.

use std::{str::FromStr, time::Duration};

/// The most requests of a quota, and the most seconds of its window: a day.
const MAX_REQUESTS: u32 = 10_000_000;
const MAX_SECONDS: u32 = 86_400;

/// Who is counted together, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// What a user reads.
    Reads,
    /// What a user changes.
    Writes,
    /// Everything that an administrator or an API key asks.
    Trusted,
    /// What is asked from one network address without good credentials: log-in, registration, and every 401.
    Address,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 4] = [Self::Reads, Self::Writes, Self::Trusted, Self::Address];

    /// The spelling in the setting and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Writes => "writes",
            Self::Trusted => "trusted",
            Self::Address => "address",
        }
    }

    /// Far beyond what an honest client does; a loop that has run wild is slowed down.
    fn default_quota(self) -> Quota {
        let per_minute = |requests| Quota {
            requests,
            seconds: 60,
        };
        match self {
            Self::Reads => per_minute(6_000),
            Self::Writes => per_minute(3_000),
            Self::Trusted => per_minute(1_200_000), // 20,000 a second, more than one process answers
            Self::Address => per_minute(3_000),     // an office, or a proxy with everybody behind it
        }
    }
}

/// So many requests in so many seconds; all of them may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests, at least 1.
    pub requests: u32,
    /// The window in seconds, at least 1.
    pub seconds: u32,
}

/// The quota of each class, if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct RateLimits {
    quotas: [Option<Quota>; Class::ALL.len()],
}

impl RateLimits {
    /// No limits at all.
    pub const OFF: Self = Self {
        quotas: [None; Class::ALL.len()],
    };

    /// The quota of a class; `None` when it is not limited.
    pub fn quota(&self, class: Class) -> Option<Quota> {
        self.quotas[class as usize]
    }
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            quotas: Class::ALL.map(|class| Some(class.default_quota())),
        }
    }
}

/// Why a text is no setting of rate limits.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is no rate limit: write on, off, or a list such as `writes=300/60, address=off` (requests per seconds) of \
     reads, writes, trusted and address"
)]
pub struct BadRateLimits(String);

impl FromStr for RateLimits {
    type Err = BadRateLimits;

    fn from_str(text: &str) -> Result<Self, BadRateLimits> {
        match text.trim() {
            "on" => return Ok(Self::default()),
            "off" => return Ok(Self::OFF),
            _ => {}
        }
        let mut limits = Self::default();
        let mut given = [false; Class::ALL.len()];
        for part in text.split(',') {
            let bad = || BadRateLimits(part.trim().to_owned());
            let (name, value) = part.split_once('=').ok_or_else(bad)?;
            let class = Class::ALL
                .into_iter()
                .find(|class| class.as_str() == name.trim())
                .ok_or_else(bad)?;
            if std::mem::replace(&mut given[class as usize], true) {
                return Err(bad()); // twice, and nobody knows which is meant
            }
            limits.quotas[class as usize] = match value.trim() {
                "off" => None,
                quota => Some(parse_quota(quota).ok_or_else(bad)?),
            };
        }
        Ok(limits)
    }
}

fn parse_quota(text: &str) -> Option<Quota> {
    let (requests, seconds) = text.split_once('/')?;
    let quota = Quota {
        requests: requests.trim().parse().ok()?,
        seconds: seconds.trim().parse().ok()?,
    };
    let sensible = (1..=MAX_REQUESTS).contains(&quota.requests) && (1..=MAX_SECONDS).contains(&quota.seconds);
    sensible.then_some(quota)
}

impl TryFrom<String> for RateLimits {
    type Error = BadRateLimits;

    fn try_from(text: String) -> Result<Self, BadRateLimits> {
        text.parse()
    }
}

/// Where somebody stands against a limit: what the fields `RateLimit` and `RateLimit-Policy` say
/// (draft-ietf-httpapi-ratelimit-headers-10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The name of the policy.
    pub policy: &'static str,
    /// Requests (or guesses) per window.
    pub limit: u32,
    /// The window.
    pub window: Duration,
    /// How many are left now.
    pub left: u32,
    /// When all of them will be there again, from now.
    pub reset: Duration,
}

impl Standing {
    /// The member of the field `RateLimit-Policy`.
    pub fn policy_item(&self) -> String {
        format!(
            "\"{}\";q={};w={}",
            self.policy,
            self.limit,
            self.window.as_secs().max(1)
        )
    }

    /// The member of the field `RateLimit`.
    pub fn item(&self) -> String {
        let seconds = self.reset.as_millis().div_ceil(1_000);
        format!("\"{}\";r={};t={seconds}", self.policy, self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_is_on_off_or_a_list_over_the_defaults() {
        let limits = |text: &str| text.parse::<RateLimits>();
        assert_eq!(limits("on").unwrap(), RateLimits::default());
        assert_eq!(limits(" off ").unwrap(), RateLimits::OFF);
        let some = limits("writes=300/60, address=off").unwrap();
        let quota = Quota {
            requests: 300,
            seconds: 60,
        };
        assert_eq!(
            (some.quota(Class::Writes), some.quota(Class::Address)),
            (Some(quota), None)
        );
        assert_eq!(
            some.quota(Class::Reads),
            RateLimits::default().quota(Class::Reads)
        );
        for bad in [
            "",
            "maybe",
            "writes",
            "writes=",
            "writes=5",
            "writes=0/60",
            "writes=5/0",
            "writes=-1/60",
            "writes=5/60,",
            "writes=5/60,writes=6/60",
            "others=5/60",
            "writes=5/100000",
            "writes=5 60",
            "writes=on",
        ] {
            assert!(limits(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fields_are_spelled_as_structured_fields() {
        let standing = Standing {
            policy: "writes",
            limit: 300,
            window: Duration::from_secs(60),
            left: 7,
            reset: Duration::from_millis(1_001),
        };
        assert_eq!(standing.policy_item(), "\"writes\";q=300;w=60");
        assert_eq!(standing.item(), "\"writes\";r=7;t=2");
    }
}
