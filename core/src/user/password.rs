//! Passwords: argon2id (RFC 9106) on blocking threads, a few at once, and the rules for a good one.
//!
//! Invariant: at most [`AT_ONCE`] hashes run in a process, each 19 MiB, and at most [`WAITING_MAX`] callers wait;
//! a caller that goes away does not free a place while its hash still runs. An unknown account costs a hash as well.

use std::{sync::Arc, time::Duration};

use argon2::{
    Algorithm, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier, Version,
    password_hash::Error as HashError,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Code, Error, Refusal, Result, StoreError};

/// Memory of one hash, in KiB; with [`PASSES`] and [`LANES`] OWASP's first choice for argon2id.
const MEMORY_KIB: u32 = 19_456;

/// Passes over that memory.
const PASSES: u32 = 2;

/// Lanes, which are threads of one hash.
const LANES: u32 = 1;

/// Hashes that run at the same time: log-ins must not starve everything else.
const AT_ONCE: usize = 2;

/// Callers that wait for their turn; at some 30 ms a hash the last one waits about a second.
const WAITING_MAX: usize = 64;

/// When to come back if even waiting is full.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Fewest characters of a new password (NIST SP 800-63B asks for 8 at least).
const LENGTH_MIN: usize = 10;

/// Most bytes of any password: hashing more serves nobody.
const BYTES_MAX: usize = 1_024;

/// Stands in for the hash of an account that does not exist or has no password; nothing matches it.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$Y291cG9uLWJvb2stbm9ib2R5$\
                      AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The most common passwords (and plain runs of keys) that are long enough to pass otherwise, in lower case.
const COMMON: &str = "\
    0123456789 01234567890 0987654321 09876543210 1029384756 1122334455 11223344556 12345678900 \
    1234567890 12345678901 123456789012 12345678910 1234567891 123456789a 123456789q 1234567890a \
    123123123123 1231231231 1234512345 123qweasdzxc 147258369a 1a2b3c4d5e 1q2w3e4r5t 1q2w3e4r5t6y \
    1qaz2wsx3edc 1qazxsw23edc 3rjs1la7qe 987654321a 9876543210 98765432100 a123456789 a1234567890 \
    a1b2c3d4e5 aa123456789 abc1234567 abc123456789 abcd123456 abcd12345678 abcde12345 abcdefghij \
    abcdefghijk abcdefghijkl admin12345 admin123456 administrator adminadmin asdfasdfasdf asdfghjkl1 \
    asdfghjkl123 asdfghjkl; azertyuiop baseball123 basketball butterfly1 changeme123 changemenow \
    chocolate1 computer123 contrasena contraseña couponbook coupon-book dragon12345 football123 \
    fuckyou123 helloworld iloveyou12 iloveyou123 iloveyou1234 letmein123 letmein1234 liverpool1 \
    manchester michael123 minecraft1 mypassword myspace123 p@ssw0rd123 p@ssword123 passpasspass \
    passw0rd12 passw0rd123 password!! password01 password10 password11 password12 password12! \
    password123 password123! password1234 password12345 password123456 password2024 password2025 \
    password2026 passwordpassword poiuytrewq pokemon123 princess123 q1w2e3r4t5 q1w2e3r4t5y6 qazwsxedcrfv \
    qazwsxedc1 qwer123456 qwerasdfzxcv qwert12345 qwerty1234 qwerty12345 qwerty123456 qwertyqwerty \
    qwertyuiop qwertyuiop1 qwertyuiop123 qwertyuiop[] qwertzuiop secret1234 spiderman1 starwars123 \
    sunshine123 superman123 trustno1234 unknown123 welcome123 welcome1234 whatever123 zaq12wsxcde3 \
    zxcvbnm123 zxcvbnm123456";

/// Whether `password` may be the new password of the account with this e-mail address and name.
///
/// # Errors
/// `weak_password`, with a sentence that says what to do.
pub fn check_policy(password: &str, email: &str, name: &str) -> Result<()> {
    let weak = |detail| Err(Refusal::new(Code::WeakPassword, detail).into());
    if password.chars().count() < LENGTH_MIN {
        return weak("The password is too short. Use at least 10 characters; a few words in a row do well.");
    }
    if password.len() > BYTES_MAX {
        return weak("The password is too long. Use at most 1,024 bytes.");
    }
    let lower = password.to_lowercase();
    let mut chars = lower.chars();
    let first = chars.next();
    if chars.all(|next| Some(next) == first) {
        return weak("The password repeats one character. Use different ones; a few words in a row do well.");
    }
    let email = email.to_lowercase();
    let local = email.split('@').next().unwrap_or_default();
    if lower == email || lower == local || lower == name.to_lowercase() {
        return weak("The password is your e-mail address or your name. Use something that nobody knows.");
    }
    if COMMON.split(' ').any(|common| common == lower) {
        return weak(
            "The password is among the first that are tried. Use a few words that do not belong together.",
        );
    }
    Ok(())
}

/// What a password turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not the one.
    Wrong,
    /// The one.
    Right,
    /// The one, but kept with other parameters than today's: hash it anew and keep that.
    RightButOutdated,
}

/// Hashes and verifies, a few at once. Clones share the limit.
#[derive(Debug, Clone)]
pub struct Passwords {
    running: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self::new()
    }
}

impl Passwords {
    /// One per process.
    pub fn new() -> Self {
        Self {
            running: Arc::new(Semaphore::new(AT_ONCE)),
            places: Arc::new(Semaphore::new(AT_ONCE + WAITING_MAX)),
        }
    }

    /// Waits for a turn to hash.
    ///
    /// # Errors
    /// `overloaded` when too many wait already.
    pub async fn turn(&self) -> Result<Turn> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Refusal::new(
                Code::Overloaded,
                "Too many people log in at this moment. Try again in a few seconds.",
            )
            .retry_after(RETRY_AFTER)
        })?;
        let running = Arc::clone(&self.running)
            .acquire_owned()
            .await
            .map_err(|_| interrupted())?;
        Ok(Turn {
            permits: Arc::new((running, place)),
        })
    }

    /// Checks the rules, then hashes a new password. Slow (some 30 ms): call it outside a transaction.
    ///
    /// # Errors
    /// `weak_password`, `overloaded`.
    pub async fn hash_new(&self, password: &str, email: &str, name: &str) -> Result<String> {
        check_policy(password, email, name)?;
        self.turn().await?.hash(password).await
    }
}

/// A turn to hash; whoever holds it keeps others waiting.
#[derive(Debug)]
pub struct Turn {
    // Shared with the running hash: a caller that is dropped does not free its place before the thread is done.
    permits: Arc<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Turn {
    /// The hash in PHC format. The rules are not asked.
    ///
    /// # Errors
    /// When hashing fails, which is a fault.
    pub async fn hash(&self, password: &str) -> Result<String> {
        let password = password.to_owned();
        self.run(move || {
            hasher()
                .hash_password(password.as_bytes())
                .map(|hash| hash.to_string())
        })
        .await
    }

    /// Compares a password with a stored hash; with `None` it takes as long and is wrong.
    ///
    /// # Errors
    /// When the stored hash cannot be read, which is a fault.
    pub async fn verify(&self, password: &str, stored: Option<&str>) -> Result<Verdict> {
        let stored = match stored {
            // An over-long password was never set: compare a short one with nobody's, so that it costs no more.
            Some(stored) if password.len() <= BYTES_MAX => stored.to_owned(),
            _ => NOBODY.to_owned(),
        };
        let password = if password.len() <= BYTES_MAX { password } else { "" }.to_owned();
        self.run(move || {
            let hash = PasswordHash::new(&stored)?;
            match hasher().verify_password(password.as_bytes(), &hash) {
                Ok(()) if is_current(&hash) => Ok(Verdict::Right),
                Ok(()) => Ok(Verdict::RightButOutdated),
                Err(HashError::PasswordInvalid) => Ok(Verdict::Wrong),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, HashError> + Send + 'static,
    ) -> Result<T> {
        let permits = Arc::clone(&self.permits);
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permits);
            result
        })
        .await;
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(fault(error.to_string())),
            Err(_) => Err(interrupted()),
        }
    }
}

/// The process is going down.
fn interrupted() -> Error {
    Refusal::new(
        Code::Unavailable,
        "The service is stopping. Try again in a few seconds.",
    )
    .retry_after(RETRY_AFTER)
    .into()
}

/// A stored hash that cannot be read, or a generator that fails: nothing that the caller did.
fn fault(detail: String) -> Error {
    StoreError::Fault(sqlx::Error::Decode(detail.into())).into()
}

fn hasher() -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters())
}

fn parameters() -> Params {
    Params::new(MEMORY_KIB, PASSES, LANES, None).expect("constants within argon2's limits")
}

fn is_current(hash: &PasswordHash) -> bool {
    hash.algorithm.as_str() == "argon2id"
        && hash.version == Some(Version::V0x13.into())
        && Params::try_from(hash)
            .is_ok_and(|used| (used.m_cost(), used.t_cost(), used.p_cost()) == (MEMORY_KIB, PASSES, LANES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_weak(password: &str) -> bool {
        check_policy(password, "ann.miller99@shop.example", "Ann Miller-Smith").is_err()
    }

    #[test]
    fn weak_passwords_are_told() {
        for weak in [
            "",
            "ninechars",
            "aaaaaaaaaaaa",
            "AAAAaaaaAAAA",
            "Password123",
            "1234567890",
            "ann.miller99@shop.example",
            "Ann.Miller99",
            "ann miller-smith",
        ] {
            assert!(is_weak(weak), "{weak}");
        }
        assert!(is_weak(&"ab".repeat(513)));
        assert!(!is_weak("correct horse battery"));
        assert!(!is_weak("зелёныйчай")); // ten characters, more bytes
    }

    #[test]
    fn the_list_holds_only_what_the_length_lets_pass() {
        for common in COMMON.split(' ') {
            assert!(common.chars().count() >= LENGTH_MIN, "{common:?}");
            assert_eq!(common, common.to_lowercase());
        }
    }

    #[tokio::test]
    async fn a_hash_fits_its_password_and_no_other() {
        let passwords = Passwords::new();
        let turn = passwords.turn().await.expect("a turn");
        let hash = turn.hash("correct horse battery").await.expect("a hash");
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        let verify = async |password: &str, stored: Option<&str>| {
            turn.verify(password, stored).await.expect("a verdict")
        };
        assert_eq!(verify("correct horse battery", Some(&hash)).await, Verdict::Right);
        assert_eq!(verify("correct horse batterY", Some(&hash)).await, Verdict::Wrong);
        assert_eq!(verify("", None).await, Verdict::Wrong);
        assert_eq!(verify(&"x".repeat(2_000), Some(&hash)).await, Verdict::Wrong);
        let old = Argon2::new(
            Algorithm::Argon2id,
            Version::V0x13,
            Params::new(8_192, 1, 1, None).expect("parameters"),
        )
        .hash_password(b"correct horse battery")
        .expect("a hash")
        .to_string();
        assert_eq!(
            verify("correct horse battery", Some(&old)).await,
            Verdict::RightButOutdated
        );
        assert!(turn.verify("x", Some("not a hash")).await.is_err());
    }

    #[tokio::test]
    async fn more_than_the_queue_holds_are_sent_away() {
        let passwords = Passwords::new();
        let first = passwords.turn().await.expect("a turn");
        let _second = passwords.turn().await.expect("a turn");
        let mut waiting: Vec<_> = (0..WAITING_MAX).map(|_| Box::pin(passwords.turn())).collect();
        for turn in &mut waiting {
            assert!(futures_util::poll!(turn).is_pending());
        }
        let refused = passwords.turn().await.expect_err("the queue is full");
        assert_eq!(refused.code(), Code::Overloaded);
        drop(first);
        assert!(waiting.remove(0).await.is_ok());
    }
}
