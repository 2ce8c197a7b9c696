//! A wave: numbers that were reserved together, put through the permutation and sorted.
//!
//! Codes whose keys are neighbours are written about twice as fast, since they find their page of the index at hand; but a
//! step is too short to hold enough of them, and they all lie apart. So half a million numbers are put through at once (a
//! tenth of a second), and each step writes the next ones of their order: neighbours, which leaves it free to write them
//! along the other large index, that of the draw ([`crate::coupon::add::Run`]).
//!
//! Invariant: a wave follows from its book's key, pattern and numbers alone. It is kept between steps to save work; a
//! process that has not got it, because another did the step before or was killed, makes the same one.

use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use super::permutation::Permutation;
use crate::error::{Result, StoreError};

/// Numbers of a wave: 8 MiB.
pub(super) const WAVE: i64 = 1 << 19;

/// Waves that are kept, for as many jobs that take turns.
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

/// The most recently used last.
static KEPT_WAVES: Mutex<Vec<(WaveId, Arc<[u128]>)>> = Mutex::new(Vec::new());

/// The numbers that the wave's codes are spelled from, sorted.
///
/// # Errors
/// When this process is coming down.
pub(super) async fn sorted(id: WaveId, permutation: Permutation) -> Result<Arc<[u128]>> {
    if let Some(wave) = kept(id) {
        return Ok(wave);
    }
    let made = tokio::task::spawn_blocking(move || {
        let first = u128::try_from(id.start).unwrap_or(0);
        let mut numbers: Vec<u128> = (first..)
            .zip(id.start..id.end)
            .map(|(number, _)| number)
            .collect();
        permutation.apply_all(&mut numbers);
        numbers.sort_unstable();
        Arc::<[u128]>::from(numbers)
    });
    let wave = made
        .await
        .map_err(|_| StoreError::from(sqlx::Error::WorkerCrashed))?;
    let mut waves = KEPT_WAVES.lock().unwrap_or_else(PoisonError::into_inner);
    waves.retain(|(known, _)| *known != id);
    if waves.len() >= KEPT {
        waves.remove(0);
    }
    waves.push((id, Arc::clone(&wave)));
    Ok(wave)
}

fn kept(id: WaveId) -> Option<Arc<[u128]>> {
    let mut waves = KEPT_WAVES.lock().unwrap_or_else(PoisonError::into_inner);
    let at = waves.iter().position(|(known, _)| *known == id)?;
    let found = waves.remove(at);
    let wave = Arc::clone(&found.1);
    waves.push(found);
    Some(wave)
}

/// Forgets a wave that is used up.
pub(super) fn forget(id: WaveId) {
    let mut waves = KEPT_WAVES.lock().unwrap_or_else(PoisonError::into_inner);
    waves.retain(|(known, _)| *known != id);
}
