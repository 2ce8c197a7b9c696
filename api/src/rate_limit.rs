//! Limits on requests: who has had enough for now is told so, with the time to come back.
//!
//! One bucket per caller and class, after the generic cell rate algorithm (ITU-T I.371, annex A): a single number per
//! bucket, the time at which it will be full again. Where a caller stands is told with every counted answer, in the
//! fields of draft-ietf-httpapi-ratelimit-headers-10, and a refusal is 429 with `Retry-After`.
//!
//! Invariant: memory is bounded. A map has two generations of at most [`GENERATION`] buckets; when the young one is full
//! it becomes the old one, and the old one is dropped whole, which at worst forgives somebody. Nothing is asked of
//! the database, and a request costs one look under a mutex that is held for that look alone.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use coupon_core::{
    Code, Refusal,
    caller::{Access, Caller, Role},
    rate_limit::{Class, Quota, RateLimits, Standing},
    user::budget::network,
};
use poem::{
    Request,
    http::{HeaderMap, HeaderName, HeaderValue},
    web::RemoteAddr,
};
use uuid::Uuid;

use crate::{app::App, problem::Problem};

/// Where a caller stands.
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// What the limit is.
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Buckets of one generation of one shard: 16 shards of two generations hold at most 128,000, some 8 MiB.
const GENERATION: usize = 4_000;
const SHARDS: usize = 16;

/// Whose bucket: an account or key, or a network address (IPv6: its /64).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Subject {
    Caller(Uuid),
    Network(IpAddr),
}

type Key = (Class, Subject);

/// The buckets of one process.
#[derive(Debug)]
pub struct RateLimiter {
    limits: RateLimits,
    began: Instant,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

/// When each bucket will be full again, in nanoseconds since the beginning.
#[derive(Debug, Default)]
struct Shard {
    young: HashMap<Key, u64>,
    old: HashMap<Key, u64>,
}

impl RateLimiter {
    /// Empty.
    pub fn new(limits: RateLimits) -> Self {
        Self {
            limits,
            began: Instant::now(),
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Counts one request at `now`, since the beginning; `None` where there is no limit. Whether it was one too many,
    /// and where the caller stands then.
    fn count(&self, class: Class, subject: Subject, now: Duration) -> Option<Result<Standing, Refused>> {
        let quota = self.limits.quota(class)?;
        let key = (class, subject);
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        let mut shard = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let now = now.as_nanos() as u64;
        let full_at = shard.full_at(&key).max(now);
        let (interval, window) = nanos(quota);
        let next = full_at + interval;
        let standing = |full_at: u64| Standing {
            policy: class.as_str(),
            limit: quota.requests,
            window: Duration::from_secs(quota.seconds.into()),
            left: u32::try_from(window.saturating_sub(full_at - now) / interval).unwrap_or(u32::MAX),
            reset: Duration::from_nanos(full_at - now),
        };
        if next - now > window {
            shard.put(key, full_at); // who keeps asking is not forgotten
            return Some(Err(Refused {
                standing: standing(full_at),
                retry_after: Duration::from_nanos(next - now - window),
            }));
        }
        shard.put(key, next);
        Some(Ok(standing(next)))
    }
}

/// One request too many.
#[derive(Debug)]
struct Refused {
    standing: Standing,
    retry_after: Duration,
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        Refusal::new(
            Code::RateLimited,
            "Too many requests. Wait for the time that Retry-After gives; RateLimit-Policy says what is allowed.",
        )
        .retry_after(refused.retry_after)
        .limit(refused.standing)
        .into()
    }
}

impl Shard {
    fn full_at(&self, key: &Key) -> u64 {
        *self.young.get(key).or_else(|| self.old.get(key)).unwrap_or(&0)
    }

    fn put(&mut self, key: Key, full_at: u64) {
        if self.young.len() >= GENERATION && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, full_at);
    }
}

/// Nanoseconds for one request to flow back, and of the whole window.
fn nanos(quota: Quota) -> (u64, u64) {
    let window = u64::from(quota.seconds) * 1_000_000_000;
    let interval = window / u64::from(quota.requests);
    (interval, interval * u64::from(quota.requests)) // a whole number of requests, so that exactly the quota fits
}

/// Where the caller of a request stands, left by whoever counts it for whoever answers it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counted(Arc<OnceLock<Standing>>);

impl Counted {
    /// Adds the fields, unless a refusal has told of a limit of its own.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        if let Some(standing) = self.0.get()
            && !headers.contains_key(RATE_LIMIT)
        {
            tell(headers, standing);
        }
    }
}

/// Adds the two fields to an answer.
pub(crate) fn tell(headers: &mut HeaderMap, standing: &Standing) {
    for (name, value) in [
        (RATE_LIMIT, standing.item()),
        (RATE_LIMIT_POLICY, standing.policy_item()),
    ] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

/// Counts a request of somebody who is known.
///
/// # Errors
/// `rate_limited`.
pub(crate) fn count_caller(app: &App, request: &Request, caller: &Caller) -> Result<(), Problem> {
    let class = match caller.access {
        Access::ApiKey(_) | Access::User(Role::Admin) => Class::Trusted,
        Access::User(Role::User) if request.method().is_safe() => Class::Reads,
        Access::User(Role::User) => Class::Writes,
    };
    count(app, request, class, Subject::Caller(caller.id))
}

/// Counts a request of a stranger, or one with bad credentials, by its network address.
///
/// # Errors
/// `rate_limited`.
pub(crate) fn count_stranger(app: &App, request: &Request) -> Result<(), Problem> {
    let remote = request
        .data::<RemoteAddr>()
        .unwrap_or_else(|| request.remote_addr());
    match crate::endpoints::client_address(remote) {
        Some(address) => count(app, request, Class::Address, Subject::Network(network(address))),
        None => Ok(()),
    }
}

fn count(app: &App, request: &Request, class: Class, subject: Subject) -> Result<(), Problem> {
    let limiter = app.rate_limiter();
    match limiter.count(class, subject, limiter.began.elapsed()) {
        None => Ok(()),
        Some(Ok(standing)) => {
            if let Some(Counted(slot)) = request.data::<Counted>() {
                let _ = slot.set(standing); // a request is counted once
            }
            Ok(())
        }
        Some(Err(refused)) => Err(refused.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(setting: &str) -> RateLimiter {
        RateLimiter::new(setting.parse().expect("a setting"))
    }

    fn caller(number: u128) -> Subject {
        Subject::Caller(Uuid::from_u128(number))
    }

    #[test]
    fn exactly_the_quota_fits_and_flows_back_evenly() {
        let limiter = limiter("writes=3/60");
        let at = |seconds| {
            limiter
                .count(Class::Writes, caller(1), Duration::from_secs(seconds))
                .unwrap()
        };
        for left in [2, 1, 0] {
            assert_eq!(at(100).unwrap().left, left);
        }
        let refused = at(100).unwrap_err();
        assert_eq!(
            (refused.standing.left, refused.retry_after),
            (0, Duration::from_secs(20))
        );
        assert_eq!(refused.standing.reset, Duration::from_secs(60));
        assert!(
            at(119).is_err(),
            "being refused costs nothing, and nothing has come back yet"
        );
        assert_eq!(at(120).unwrap().left, 0);
        assert!(at(121).is_err());
        assert_eq!(at(1_000).unwrap().left, 2, "never more than the quota");
    }

    #[test]
    fn callers_and_classes_do_not_share_and_a_class_may_be_off() {
        let limiter = limiter("writes=1/60,reads=1/60,trusted=off");
        let count = |class, subject| limiter.count(class, subject, Duration::from_secs(1));
        assert!(count(Class::Writes, caller(1)).unwrap().is_ok());
        assert!(count(Class::Writes, caller(1)).unwrap().is_err());
        assert!(count(Class::Writes, caller(2)).unwrap().is_ok());
        assert!(count(Class::Reads, caller(1)).unwrap().is_ok());
        assert!(count(Class::Trusted, caller(1)).is_none());
        let off = RateLimiter::new(RateLimits::OFF);
        assert!(off.count(Class::Address, caller(1), Duration::ZERO).is_none());
    }

    #[test]
    fn memory_is_bounded_and_who_keeps_asking_is_not_forgotten() {
        let limiter = limiter("address=5/60");
        for number in 0..200_000 {
            let _ = limiter.count(Class::Address, caller(number), Duration::from_secs(1));
            let busy = limiter
                .count(Class::Address, caller(0), Duration::from_secs(1))
                .unwrap();
            assert_eq!(busy.is_ok(), number < 4, "{number}");
        }
        let buckets = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap();
            shard.young.len() + shard.old.len()
        };
        assert!(limiter.shards.iter().map(buckets).sum::<usize>() <= 2 * GENERATION * SHARDS);
    }
}
