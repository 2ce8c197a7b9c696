//! Idempotency keys: a request that is repeated with its key gets the answer that was given, not a second effect.
//!
//! Invariant: the record of an answer commits in the transaction of its effect, so there is never one without the
//! other. While a request is being answered its key is held by an advisory lock of that transaction: a copy sees that
//! it is taken and is sent away, and nothing is left behind when the process dies.
//! Bodies are sealed with AES-256-GCM (NIST SP 800-38D), since they may hold lock tokens and API keys.

use aes_gcm::{
    Aes256Gcm, Key, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{Code, Refusal, Result};

/// The most characters of a key.
pub const MAX_KEY_LENGTH: usize = 255;

/// Bytes of a nonce, which stands before the sealed text.
const NONCE_BYTES: usize = 12;

/// A key of a caller, and what was asked with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The user or API key.
    pub caller_id: Uuid,
    /// The caller's key.
    pub key: String,
    /// SHA-256 of method, path, query and body.
    pub request_hash: [u8; 32],
}

/// An answer as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The `Location` header.
    pub location: Option<String>,
    /// The job that the answer is about; it is rendered anew.
    pub job_id: Option<Uuid>,
    /// The body; empty when `job_id` tells it.
    pub body: Vec<u8>,
}

/// Seals and opens bodies at rest.
#[derive(Clone)]
pub struct Sealer {
    cipher: Aes256Gcm,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(…)")
    }
}

impl Sealer {
    /// With a secret of its own.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self {
            cipher: Aes256Gcm::new(&Key::<Aes256Gcm>::from(*secret)),
        }
    }

    fn seal(&self, claim: &Claim, text: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let sealed = self
            .cipher
            .encrypt(
                &Nonce::from(nonce),
                Payload {
                    msg: text,
                    aad: &claim.bound_to(),
                },
            )
            .expect("a body is far below the cipher's limit");
        [nonce.as_slice(), &sealed].concat()
    }

    fn open(&self, claim: &Claim, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, text) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        self.cipher
            .decrypt(
                &Nonce::from(*nonce),
                Payload {
                    msg: text,
                    aad: &claim.bound_to(),
                },
            )
            .ok()
    }
}

impl Claim {
    /// A sealed body opens only for the caller and key that it was sealed for.
    fn bound_to(&self) -> Vec<u8> {
        [self.caller_id.as_bytes().as_slice(), self.key.as_bytes()].concat()
    }

    fn lock_number(&self) -> i64 {
        let digest = Sha256::digest(self.bound_to());
        let mut head = [0; 8];
        head.copy_from_slice(&digest[..8]);
        i64::from_be_bytes(head)
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    request_hash: Vec<u8>,
    status: i16,
    location: Option<String>,
    job_id: Option<Uuid>,
    body: Option<Vec<u8>>,
}

/// Takes a key for this transaction; gives the answer if there is one already.
///
/// # Errors
/// `idempotency_in_progress` while a copy is being answered, `idempotency_key_reused` for another request.
pub async fn take(connection: &mut PgConnection, sealer: &Sealer, claim: &Claim) -> Result<Option<Answer>> {
    let taken: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
        .bind(claim.lock_number())
        .fetch_one(&mut *connection)
        .await?;
    // In a statement of its own, so that it sees what whoever had the lock before committed. In one statement with the
    // lock it would look from before, find nothing, and the effect would be tried again.
    let row: Option<Row> = sqlx::query_as(
        "SELECT request_hash, status, location, job_id, body FROM idempotency_keys WHERE caller_id = $1 AND key = $2",
    )
    .bind(claim.caller_id)
    .bind(&claim.key)
    .fetch_optional(connection)
    .await?;
    match row {
        Some(row) if row.request_hash != claim.request_hash => Err(Refusal::new(
            Code::IdempotencyKeyReused,
            "This Idempotency-Key was used with another request; use a new one.",
        )
        .into()),
        Some(row) => {
            let body = match row.body {
                Some(sealed) => sealer.open(claim, &sealed).ok_or_else(|| {
                    Refusal::new(
                        Code::Internal,
                        "The stored answer cannot be opened: the signing secret has changed.",
                    )
                })?,
                None => Vec::new(),
            };
            Ok(Some(Answer {
                status: u16::try_from(row.status).unwrap_or(500),
                location: row.location,
                job_id: row.job_id,
                body,
            }))
        }
        None if taken => Ok(None),
        None => Err(in_progress().into()),
    }
}

/// Records the answer, to be committed with its effect.
///
/// # Errors
/// `idempotency_in_progress` when a copy was answered between the lock and this moment; the effect is to be rolled back.
pub async fn record(
    connection: &mut PgConnection,
    sealer: &Sealer,
    claim: &Claim,
    answer: &Answer,
) -> Result<()> {
    let body = (!answer.body.is_empty()).then(|| sealer.seal(claim, &answer.body));
    let written = sqlx::query(
        "INSERT INTO idempotency_keys (caller_id, key, request_hash, status, location, job_id, body)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
    )
    .bind(claim.caller_id)
    .bind(&claim.key)
    .bind(&claim.request_hash[..])
    .bind(i16::try_from(answer.status).unwrap_or(500))
    .bind(answer.location.as_deref())
    .bind(answer.job_id)
    .bind(body)
    .execute(connection)
    .await?;
    if written.rows_affected() == 0 {
        Err(in_progress().into())
    } else {
        Ok(())
    }
}

fn in_progress() -> Refusal {
    Refusal::new(
        Code::IdempotencyInProgress,
        "A request with this Idempotency-Key is still being answered.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_body_opens_only_for_its_own_claim() {
        let sealer = Sealer::new(&[3; 32]);
        let claim = Claim {
            caller_id: Uuid::from_u128(1),
            key: "a".into(),
            request_hash: [0; 32],
        };
        let sealed = sealer.seal(&claim, b"cbl_secret");
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert_eq!(sealer.open(&claim, &sealed).as_deref(), Some(&b"cbl_secret"[..]));
        assert_eq!(
            sealer.open(
                &Claim {
                    key: "b".into(),
                    ..claim.clone()
                },
                &sealed
            ),
            None
        );
        assert_eq!(Sealer::new(&[4; 32]).open(&claim, &sealed), None);
    }
}
