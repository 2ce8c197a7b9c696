//! The draw: every unassigned coupon is equally likely to come next, and the whole order follows from a secret seed.
//!
//! Each coupon lies at a key of 63 bits; draws take the smallest keys at or above a cursor and move the cursor to the
//! last one taken. A code that arrives late or comes back is laid uniformly between the cursor and 2⁶³, which keeps the
//! chances equal: given the cursor, the keys of all unassigned coupons are independent and uniform above it.
//! Invariant: no unassigned coupon lies below the cursor. Keys are given and the cursor is moved under the row lock of
//! `draw_states`, so draws of one book run one after another, and nothing above the cursor means the book is exhausted.
//!
//! The key is HMAC-SHA-256 (RFC 2104) of epoch, arrival number and code key under the seed: whoever is given the seed
//! can recompute the order. SHA-256 of the seed is shown from the start.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{Refusal, Result};

/// One more than the largest key.
const KEY_END: u128 = 1 << 63;

/// When fewer keys than this are left above the cursor, what is left of the book is keyed anew: late codes need room to
/// be told apart. 2⁴³ leaves 2²⁰ chances in 2⁶³ of ever getting there before nearly everything is drawn.
const CROWDED_BELOW: u128 = 1 << 43;

/// Where a book's draw stands, locked.
#[derive(Clone, sqlx::FromRow)]
pub struct DrawState {
    book_id: Uuid,
    epoch: i32,
    cursor: i64,
    arrivals: i64,
    seed: Vec<u8>,
    /// HMAC with the seed taken in, which is half of the work of a key.
    #[sqlx(skip)]
    mac: Option<Hmac<Sha256>>,
}

impl std::fmt::Debug for DrawState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DrawState")
            .field("book_id", &self.book_id)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// A new book's seed and its commitment.
pub(crate) fn new_seed() -> ([u8; 32], [u8; 32]) {
    let seed: [u8; 32] = rand::random();
    (seed, Sha256::digest(seed).into())
}

impl DrawState {
    /// Locks a book's draw until the transaction ends, keying the rest anew first if it has become crowded.
    ///
    /// # Errors
    /// `not_found` when there is no such book.
    pub async fn lock(connection: &mut PgConnection, book_id: Uuid) -> Result<Self> {
        let state: Option<Self> = sqlx::query_as(
            "SELECT book_id, epoch, cursor, arrivals, seed FROM draw_states WHERE book_id = $1 FOR UPDATE",
        )
        .bind(book_id)
        .fetch_optional(&mut *connection)
        .await?;
        let mut state = state.ok_or_else(Refusal::not_found)?;
        if state.span() < CROWDED_BELOW {
            state.begin_epoch(connection).await?;
        }
        Ok(state)
    }

    /// Where a book's draw stands at the moment, not locked.
    ///
    /// # Errors
    /// `not_found` when there is no such book.
    pub(crate) async fn peek(connection: &mut PgConnection, book_id: Uuid) -> Result<Self> {
        let state: Option<Self> = sqlx::query_as(
            "SELECT book_id, epoch, cursor, arrivals, seed FROM draw_states WHERE book_id = $1",
        )
        .bind(book_id)
        .fetch_optional(connection)
        .await?;
        Ok(state.ok_or_else(Refusal::not_found)?)
    }

    /// Where it will stand when so many codes have arrived and nothing else has happened.
    pub(crate) fn after(&self, arriving: i64) -> Self {
        Self {
            arrivals: self.arrivals + arriving,
            ..self.clone()
        }
    }

    /// Whether it stands where `other` does.
    pub(crate) fn stands_as(&self, other: &Self) -> bool {
        let place = |state: &Self| (state.book_id, state.epoch, state.cursor, state.arrivals);
        place(self) == place(other)
    }

    /// Whose draw it is.
    pub fn book_id(&self) -> Uuid {
        self.book_id
    }

    /// Where the next draw begins.
    pub fn cursor(&self) -> i64 {
        self.cursor
    }

    /// How often the rest has been keyed anew.
    pub fn epoch(&self) -> i32 {
        self.epoch
    }

    /// How many codes have arrived so far.
    pub fn arrivals(&self) -> i64 {
        self.arrivals
    }

    /// Lays the next arriving code somewhere at or above the cursor and counts it.
    pub fn lay(&mut self, code_key: &str) -> i64 {
        let key = self.key(self.arrivals, code_key);
        self.arrivals += 1;
        key
    }

    /// Moves the cursor to the last key drawn.
    pub fn advance(&mut self, last_drawn: i64) {
        self.cursor = self.cursor.max(last_drawn);
    }

    /// Writes the state back.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn save(&self, connection: &mut PgConnection) -> Result<()> {
        sqlx::query("UPDATE draw_states SET epoch = $2, cursor = $3, arrivals = $4 WHERE book_id = $1")
            .bind(self.book_id)
            .bind(self.epoch)
            .bind(self.cursor)
            .bind(self.arrivals)
            .execute(connection)
            .await?;
        Ok(())
    }

    fn span(&self) -> u128 {
        KEY_END - u128::try_from(self.cursor).unwrap_or(0)
    }

    fn key(&mut self, arrival: i64, code_key: &str) -> i64 {
        let seed = &self.seed;
        let mac = self.mac.get_or_insert_with(|| keyed(seed)).clone();
        lie(mac, self.epoch, self.cursor, arrival, code_key)
    }

    /// Keys what is left anew over the whole range, in the order in which it would have been drawn.
    async fn begin_epoch(&mut self, connection: &mut PgConnection) -> Result<()> {
        let left: Vec<String> = sqlx::query_scalar(
            "SELECT code_key FROM coupons WHERE book_id = $1 AND state LIKE 'unassigned' AND draw_key >= $2 ORDER BY draw_key, code_key",
        )
        .bind(self.book_id)
        .bind(self.cursor)
        .fetch_all(&mut *connection)
        .await?;
        self.epoch += 1;
        self.cursor = 0;
        let keys: Vec<i64> = left
            .iter()
            .zip(0..)
            .map(|(code_key, place): (&String, i64)| self.key(place, code_key))
            .collect();
        sqlx::query(
            "UPDATE coupons c SET draw_key = n.draw_key FROM unnest($2::text[], $3::bigint[]) AS n (code_key, draw_key)
             WHERE c.book_id = $1 AND c.code_key = n.code_key AND c.state = 'unassigned'",
        )
        .bind(self.book_id)
        .bind(&left)
        .bind(&keys)
        .execute(&mut *connection)
        .await?;
        sqlx::query(
            "INSERT INTO events (book_id, id, actor_kind, kind, after)
             VALUES ($1, uuid_v7(), 'system', 'draw_rekeyed', jsonb_build_object('epoch', $2::int, 'left', $3::text[]))",
        )
        .bind(self.book_id)
        .bind(self.epoch)
        .bind(&left)
        .execute(&mut *connection)
        .await?;
        self.save(connection).await
    }
}

/// Where a code lies that arrives as number `arrival` while the draw stands at `cursor`: uniform over [cursor, 2⁶³).
pub fn key(seed: &[u8], epoch: i32, cursor: i64, arrival: i64, code_key: &str) -> i64 {
    lie(keyed(seed), epoch, cursor, arrival, code_key)
}

fn keyed(seed: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(seed).expect("HMAC takes a key of any length")
}

fn lie(mut mac: Hmac<Sha256>, epoch: i32, cursor: i64, arrival: i64, code_key: &str) -> i64 {
    mac.update(&epoch.to_be_bytes());
    mac.update(&arrival.to_be_bytes());
    mac.update(code_key.as_bytes());
    let digest = mac.finalize().into_bytes();
    let mut head = [0u8; 8];
    head.copy_from_slice(&digest[..8]);
    let uniform = u128::from(u64::from_be_bytes(head) >> 1); // 63 bits
    let cursor = u128::try_from(cursor).unwrap_or(0);
    let key = cursor + ((uniform * (KEY_END - cursor)) >> 63);
    i64::try_from(key).expect("a key has 63 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(cursor: i64) -> DrawState {
        DrawState {
            book_id: Uuid::nil(),
            epoch: 0,
            cursor,
            arrivals: 0,
            seed: vec![7; 32],
            mac: None,
        }
    }

    #[test]
    fn keys_lie_at_or_above_the_cursor_and_fill_the_range() {
        for cursor in [0, 1, 1 << 40, i64::MAX - (1 << 44), i64::MAX - 1, i64::MAX] {
            let mut state = state(cursor);
            let keys: Vec<i64> = (0..200).map(|arrival| state.key(arrival, "CODE")).collect();
            assert!(keys.iter().all(|key| *key >= cursor));
            let above = keys
                .iter()
                .filter(|key| **key - cursor > (i64::MAX - cursor) / 2)
                .count();
            assert!(
                cursor > i64::MAX - 2 || (60..140).contains(&above),
                "{above} of 200 in the upper half"
            );
        }
    }

    /// Draws of one book as the database does them, in memory.
    struct Model {
        state: DrawState,
        lying: Vec<(i64, u8)>,
    }

    impl Model {
        fn new(number: u64, codes: std::ops::Range<u8>) -> Self {
            let mut seed = vec![0; 32];
            seed[..8].copy_from_slice(&number.to_be_bytes());
            let mut model = Self {
                state: DrawState { seed, ..state(0) },
                lying: Vec::new(),
            };
            codes.for_each(|code| model.lay(code));
            model
        }

        fn lay(&mut self, code: u8) {
            let key = self.state.lay(&format!("CODE{code}"));
            self.lying.push((key, code));
        }

        fn draw(&mut self) -> u8 {
            let next = (0..self.lying.len()).min_by_key(|n| self.lying[*n].0).unwrap();
            let (key, code) = self.lying.swap_remove(next);
            self.state.advance(key);
            code
        }
    }

    /// χ² of counts that should be equal, in standard deviations above what is expected of it (its distribution is
    /// nearly normal at these degrees of freedom: Wilson and Hilferty 1931).
    fn surprise(counts: &[u32]) -> f64 {
        let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
        let chi2: f64 = counts
            .iter()
            .map(|count| (f64::from(*count) - expected).powi(2) / expected)
            .sum();
        let freedom = (counts.len() - 1) as f64;
        let part = 2.0 / (9.0 * freedom);
        ((chi2 / freedom).cbrt() - (1.0 - part)) / part.sqrt()
    }

    #[test]
    fn each_code_is_as_likely_at_every_draw_also_those_that_came_late_or_back() {
        // 12 codes at first, 6 after three draws, 2 of those drawn come back after six more, one at the very end.
        // Seeds are fixed, so the outcome is, too; 4 standard deviations happen once in 30,000 seeds of such a test.
        const BOOKS: u64 = 30_000;
        let mut at = vec![vec![0_u32; 18]; 4];
        let mut returned = [0_u32; 2];
        for number in 0..BOOKS {
            let mut model = Model::new(number, 0..12);
            at[0][usize::from(model.draw())] += 1;
            let (second, third) = (model.draw(), model.draw());
            (12..18).for_each(|code| model.lay(code));
            // Those in the draw now: all but three. Which of the 15 places, counted among those present.
            let mut present: Vec<u8> = model.lying.iter().map(|(_, code)| *code).collect();
            present.sort_unstable();
            let next = model.draw();
            at[1][present.iter().position(|code| *code == next).unwrap()] += 1;
            let drawn: Vec<u8> = (0..5).map(|_| model.draw()).collect();
            model.lay(second);
            model.lay(third);
            let mut present: Vec<u8> = model.lying.iter().map(|(_, code)| *code).collect();
            present.sort_unstable();
            let next = model.draw();
            at[2][present.iter().position(|code| *code == next).unwrap()] += 1;
            returned[0] += u32::from(next == second || next == third);
            while model.lying.len() > 1 {
                model.draw();
            }
            model.lay(drawn[0]);
            let last = model.lying[0].1;
            let next = model.draw();
            at[3][usize::from(next == last)] += 1;
            returned[1] += u32::from(next == drawn[0]);
        }
        for (draw, (counts, places)) in at.iter().zip([12, 15, 11, 2]).enumerate() {
            assert_eq!(counts.iter().sum::<u32>(), u32::try_from(BOOKS).unwrap());
            assert!(counts[places..].iter().all(|count| *count == 0), "{counts:?}");
            let surprise = surprise(&counts[..places]);
            assert!(surprise < 4.0, "draw {draw}: {surprise} {counts:?}");
        }
        // Two of eleven, and one of two.
        let share = |count: u32| f64::from(count) / BOOKS as f64;
        assert!((share(returned[0]) - 2.0 / 11.0).abs() < 0.01, "{returned:?}");
        assert!((share(returned[1]) - 0.5).abs() < 0.012, "{returned:?}");
    }

    #[test]
    fn the_key_of_a_code_never_changes_its_formula() {
        // Verifiers outside this repository recompute it.
        let mut mac = Hmac::<Sha256>::new_from_slice(&[7; 32]).unwrap();
        mac.update(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        mac.update(b"CODE");
        let digest = mac.finalize().into_bytes();
        let expected = u64::from_be_bytes(digest[..8].try_into().unwrap()) >> 1;
        assert_eq!(state(0).key(5, "CODE"), i64::try_from(expected).unwrap());
    }
}
