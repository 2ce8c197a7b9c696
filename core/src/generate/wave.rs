//! A wave: numbers that were reserved together, put through the permutation and sorted.
//!
//! Codes whose keys are neighbours are written about twice as fast, since they find their page of the index at hand; but a
//! step is too short to hold enough of them, and they all lie apart. So half a million numbers are put through at once (a
//! tenth of a second, beside the database's work), and each step writes the next ones of their order.
//!
//! Invariant: a wave follows from its book's key, pattern and numbers alone. It is kept between steps to save work; a
//! process that has not got it, because another did the step before or was killed, makes the same one.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;
use uuid::Uuid;

use super::permutation::Permutation;
use crate::error::{Result, StoreError};

/// Numbers of a wave: 8 MiB.
pub(super) const WAVE: i64 = 1 << 19;

/// Waves that are kept: of each of two jobs that take turns the one that is written and the next.
const KEPT: usize = 4;

/// Which wave.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct WaveId {
    /// The book, whose key never changes.
    pub(super) book_id: Uuid,
    /// The pattern.
    pub(super) tweak: [u8; 32],
    /// Its first number.
    pub(super) start: i64,
    /// The number behind its last.
    pub(super) end: i64,
}

/// A wave once it is made: whoever asks first makes it, the others wait for that.
type Numbers = Arc<OnceCell<Arc<[u128]>>>;

/// The most recently used last.
static KEPT_WAVES: Mutex<Vec<(WaveId, Numbers)>> = Mutex::new(Vec::new());

/// The numbers that the wave's codes are spelled from, sorted.
///
/// # Errors
/// When this process is coming down.
pub(super) async fn sorted(id: WaveId, permutation: Permutation) -> Result<Arc<[u128]>> {
    let numbers = kept(id);
    let made = numbers.get_or_try_init(|| async {
        tokio::task::spawn_blocking(move || make(id, &permutation))
            .await
            .map_err(|_| StoreError::from(sqlx::Error::WorkerCrashed))
    });
    Ok(Arc::clone(made.await?))
}

/// Begins to make a wave that will be asked for.
pub(super) fn begin(id: WaveId, permutation: Permutation) {
    tokio::spawn(sorted(id, permutation));
}

fn make(id: WaveId, permutation: &Permutation) -> Arc<[u128]> {
    let first = u128::try_from(id.start).unwrap_or(0);
    let mut numbers: Vec<u128> = (first..)
        .zip(id.start..id.end)
        .map(|(number, _)| number)
        .collect();
    permutation.apply_all(&mut numbers);
    numbers.sort_unstable();
    numbers.into()
}

fn kept(id: WaveId) -> Numbers {
    let mut waves = KEPT_WAVES.lock().unwrap_or_else(PoisonError::into_inner);
    let wave = match waves.iter().position(|(known, _)| *known == id) {
        Some(at) => waves.remove(at).1,
        None => Numbers::default(),
    };
    if waves.len() >= KEPT {
        waves.remove(0);
    }
    waves.push((id, Arc::clone(&wave)));
    wave
}

/// Forgets the waves of a book with numbers below `end`, which nobody will ask for: it has one job at a time.
pub(super) fn forget(book_id: Uuid, end: i64) {
    let mut waves = KEPT_WAVES.lock().unwrap_or_else(PoisonError::into_inner);
    waves.retain(|(known, _)| known.book_id != book_id || known.start >= end);
}
