//! `verify-draw`: a proof of draws, checked without the service.

use std::{fs::File, io::BufReader, path::Path};

use anyhow::Context;
use coupon_core::proof::{
    Proof,
    verify::{Verified, verify},
};

use crate::{print, say};

/// Faults that are shown; one wrong seed makes as many as there are codes.
const SHOWN: usize = 50;

/// Checks the proof in a file and says what does not fit; gives whether everything does.
pub(crate) fn run(file: &Path) -> anyhow::Result<bool> {
    let opened = File::open(file).with_context(|| format!("{} cannot be opened", file.display()))?;
    let proof: Proof = serde_json::from_reader(BufReader::new(opened))
        .with_context(|| format!("{} is no whole proof", file.display()))?;
    match verify(&proof) {
        Ok(Verified {
            codes,
            returns,
            draws,
            given,
        }) => {
            print(&format!(
                "The proof holds: {codes} codes, {returns} returns, {draws} draws, of which {given} are the distribution's."
            ));
            print(&format!(
                "Compare with what was published before: draw_commitment {}, seed_commitment {}.",
                proof.book.commitment, proof.distribution.commitment
            ));
            Ok(true)
        }
        Err(faults) => {
            for fault in faults.iter().take(SHOWN) {
                print(fault);
            }
            if faults.len() > SHOWN {
                print(&format!("and {} more", faults.len() - SHOWN));
            }
            say("couponbook: the proof does not hold");
            Ok(false)
        }
    }
}
