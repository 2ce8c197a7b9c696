//! Verifying a proof: doing the draws again, and saying what does not fit.
//!
//! Each stay of a code in the draw begins with an arrival (or a return) and ends with a leaving; in between it may be
//! keyed anew, so it has one key in each epoch of its stay. [`stays`] finds them out, [`draws`] goes through them epoch by
//! epoch, [`people`] looks at what the distribution made of its draws.
//! Invariant: every part adds what does not fit to one list and goes on, so that a verifier is told all of it at once.
//! To check one more thing: a sentence in the part that it belongs to, and a proof tampered with in tests/it/proofs.rs.

mod draws;
mod people;
mod stays;

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::{FORMAT, How, Leaving, Proof};
use crate::distribution::order::Seed;

/// What was done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Codes.
    pub codes: usize,
    /// Returns into the draw.
    pub returns: usize,
    /// Draws.
    pub draws: usize,
    /// Coupons of the distribution.
    pub given: usize,
}

/// One stay of a code in the draw.
struct Stay<'a> {
    code: &'a str,
    expires_at: Option<DateTime<Utc>>,
    arrival: i64,
    epoch: i32,
    cursor: i64,
    end: Option<&'a Leaving>,
    /// The epoch in which it ended, or the last one.
    last_epoch: i32,
    /// Its key there.
    last_key: i64,
}

/// Does the draws of a proof again.
///
/// # Errors
/// Everything that does not fit, as sentences.
pub fn verify(proof: &Proof) -> Result<Verified, Vec<String>> {
    let mut check = Check {
        proof,
        wrong: Vec::new(),
        stays: Vec::new(),
        by_code: HashMap::new(),
    };
    check.all();
    if !check.wrong.is_empty() {
        return Err(check.wrong);
    }
    Ok(Verified {
        codes: proof.codes.len(),
        returns: proof.returns.len(),
        draws: proof.leavings.iter().filter(|it| it.how == How::Drawn).count(),
        given: proof.coupons.len(),
    })
}

struct Check<'a> {
    proof: &'a Proof,
    wrong: Vec<String>,
    stays: Vec<Stay<'a>>,
    by_code: HashMap<&'a str, Vec<usize>>,
}

impl Check<'_> {
    fn fault(&mut self, fault: String) {
        self.wrong.push(fault);
    }

    fn all(&mut self) {
        let proof = self.proof;
        if proof.format != FORMAT {
            return self.fault(format!("the format is {:?}, not {FORMAT:?}", proof.format));
        }
        let Some(seed) = self.seed("book", &proof.book.seed, &proof.book.commitment) else {
            return;
        };
        self.arrivals();
        self.ends();
        self.draws(&seed);
        let own = self.seed(
            "distribution",
            &proof.distribution.seed,
            &proof.distribution.commitment,
        );
        if let Some(own) = own {
            self.people(&Seed::from_bytes(own));
            self.given();
        }
    }

    /// A seed that fits its commitment.
    fn seed(&mut self, whose: &str, seed: &str, commitment: &str) -> Option<Vec<u8>> {
        let Some(bytes) = from_hex(seed) else {
            self.fault(format!("the seed of the {whose} is not hexadecimal"));
            return None;
        };
        let hash: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if hash != commitment {
            self.fault(format!("the seed of the {whose} is not the one it committed to"));
            return None;
        }
        Some(bytes)
    }

    fn number(&mut self, what: &str, text: &str) -> i64 {
        text.parse()
            .ok()
            .filter(|number| *number >= 0)
            .unwrap_or_else(|| {
                self.fault(format!("{what} is no number of 63 bits: {text:?}"));
                0
            })
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    let pairs = bytes
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    bytes.len().is_multiple_of(2).then(|| pairs.collect())?
}
