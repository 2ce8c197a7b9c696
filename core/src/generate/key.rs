//! The secret that a book's generated codes follow from.
//!
//! Invariant: made once per book, by the operating system's generator; it leaves this module only as permutations, and
//! has no `Debug`.

use hmac::{Hmac, KeyInit, Mac};
use rand::{TryRng, rngs::SysRng};
use sha2::Sha256;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{pattern::Pattern, permutation::Permutation};
use crate::error::{Refusal, Result};

/// A book's key.
#[derive(Clone)]
pub(super) struct BookKey([u8; 32]);

impl BookKey {
    /// The book's key, which is made if there is none.
    ///
    /// # Errors
    /// `not_found` when there is no such book.
    pub(super) async fn ensure(connection: &mut PgConnection, book_id: Uuid) -> Result<Self> {
        let mut fresh = [0u8; 32];
        SysRng
            .try_fill_bytes(&mut fresh)
            .expect("the operating system has random numbers");
        sqlx::query("INSERT INTO code_keys (book_id, key) SELECT id, $2 FROM books WHERE id = $1 ON CONFLICT DO NOTHING")
            .bind(book_id)
            .bind(&fresh[..])
            .execute(&mut *connection)
            .await?;
        let key: Option<Vec<u8>> = sqlx::query_scalar("SELECT key FROM code_keys WHERE book_id = $1")
            .bind(book_id)
            .fetch_optional(connection)
            .await?;
        key.and_then(Self::from_bytes)
            .ok_or_else(|| Refusal::not_found().into())
    }

    /// A key as it is stored.
    pub(super) fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The permutation of the numbers of a pattern. Each pattern has a key of its own: the first 128 bits of
    /// HMAC-SHA-256 (RFC 2104) of its tweak under the book's key.
    pub(super) fn permutation(&self, pattern: &Pattern) -> Permutation {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(b"coupon-book codes 1");
        mac.update(&pattern.tweak());
        let digest = mac.finalize().into_bytes();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Permutation::new(&key, pattern.space())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::pattern::Given, *};

    /// From key and pattern to codes: should one of these change, an update would change the codes of jobs under way.
    #[test]
    fn the_codes_of_a_key_never_change() {
        let key = BookKey(std::array::from_fn(|place| place as u8));
        for (pattern, alphabet, check, expected) in [
            (
                "SPRING-****-****",
                Some("unambiguous"),
                false,
                ["SPRING-DQ93-BVPG", "SPRING-RCSW-3SHZ", "SPRING-SC7D-GBTB"],
            ),
            ("######", None, true, ["8093663", "3170975", "7089379"]),
            ("???", None, false, ["HKJ", "PEI", "KHB"]),
        ] {
            let given = Given {
                pattern,
                alphabet,
                check,
            };
            let pattern = Pattern::parse(given, false).unwrap();
            let permutation = key.permutation(&pattern);
            let mut speller = pattern.speller();
            let codes = [0, 1, 2].map(|number| {
                let (key, shown) = speller.spell(permutation.apply(number));
                shown.unwrap_or(key).to_owned()
            });
            assert_eq!(codes, expected);
        }
    }
}
