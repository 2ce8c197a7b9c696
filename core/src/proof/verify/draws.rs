//! The draws: every key of every stay, and what was drawn of them.
//!
//! The claim that is checked, epoch by epoch: draws went upwards through the keys and left nothing out that was there,
//! unless it had expired or had left otherwise.

use std::collections::BTreeMap;

use super::Check;
use crate::{
    coupon::draw,
    proof::{How, Leaving},
};

/// Where a stay has its key in an epoch.
#[derive(Clone, Copy)]
struct Position {
    key: i64,
    stay: usize,
}

impl Check<'_> {
    /// Does them again, epoch by epoch.
    pub(super) fn draws(&mut self, seed: &[u8]) {
        for (epoch, positions) in self.keys(seed) {
            self.epoch(epoch, positions);
        }
    }

    /// Every key of every stay, by epoch.
    fn keys(&mut self, seed: &[u8]) -> BTreeMap<i32, Vec<Position>> {
        let proof = self.proof;
        let last_epoch = proof.book.epoch;
        let mut epochs: BTreeMap<i32, Vec<Position>> = BTreeMap::new();
        for index in 0..self.stays.len() {
            let stay = &mut self.stays[index];
            let (epoch, code) = (stay.epoch, stay.code);
            stay.last_key = draw::key(seed, epoch, stay.cursor, stay.arrival, code);
            if stay.end.is_some_and(|end| end.how == How::Held) {
                continue; // never in the draw
            }
            let key = stay.last_key;
            epochs
                .entry(epoch)
                .or_default()
                .push(Position { key, stay: index });
            if !(0..=last_epoch).contains(&epoch) {
                self.fault(format!("{code} arrived in epoch {epoch}, which never was"));
            }
        }
        if i32::try_from(proof.epochs.len()).ok() != Some(last_epoch) {
            self.fault(format!(
                "{} epochs are told of, not {last_epoch}",
                proof.epochs.len()
            ));
        }
        for (epoch, begun) in (1..).zip(&proof.epochs) {
            if begun.epoch != epoch {
                self.fault(format!("epoch {epoch} is missing"));
            }
            let mut before = None;
            for (place, code) in (0..).zip(&begun.left) {
                // The last stay that had begun by then.
                let stays = self.by_code.get(code.as_str());
                let stay =
                    stays.and_then(|stays| stays.iter().rev().find(|stay| self.stays[**stay].epoch < epoch));
                let Some(&index) = stay else {
                    self.fault(format!("{code} was left in epoch {epoch} and had not arrived"));
                    continue;
                };
                let stay = &mut self.stays[index];
                let known = (stay.last_key, code.as_bytes());
                let in_order = before.is_none_or(|before| before < known) && stay.last_epoch == epoch - 1;
                before = Some(known);
                (stay.last_epoch, stay.last_key) = (epoch, draw::key(seed, epoch, 0, place, code));
                let key = stay.last_key;
                epochs
                    .entry(epoch)
                    .or_default()
                    .push(Position { key, stay: index });
                if !in_order {
                    self.fault(format!(
                        "{code} is out of order among what was left for epoch {epoch}"
                    ));
                }
            }
        }
        epochs.entry(last_epoch).or_default();
        epochs
    }

    /// Draws of an epoch went upwards and left nothing out.
    fn epoch(&mut self, epoch: i32, mut positions: Vec<Position>) {
        let proof = self.proof;
        positions.sort_unstable_by_key(|position| position.key);
        let mut wrong = Vec::new();
        let drawn: Vec<(i64, &Leaving)> = positions
            .iter()
            .filter_map(|position| {
                let stay = &self.stays[position.stay];
                let end = stay
                    .end
                    .filter(|end| end.how == How::Drawn && stay.last_epoch == epoch)?;
                if stay.expires_at.is_some_and(|expires_at| expires_at <= end.at) {
                    wrong.push(format!("{} was drawn after it had expired", stay.code));
                }
                Some((position.key, end))
            })
            .collect();
        let cursor = drawn.last().map_or(0, |(key, _)| *key);
        if epoch == proof.book.epoch && proof.book.cursor != cursor.to_string() {
            wrong.push(format!(
                "the last key drawn is {cursor}, but the draw ended at {}: a draw is missing or was added",
                proof.book.cursor
            ));
        }
        for position in &positions {
            let stay = &self.stays[position.stay];
            let arrived_here = stay.epoch == epoch;
            if arrived_here
                && stay.cursor != 0
                && drawn.binary_search_by_key(&stay.cursor, |(key, _)| *key).is_err()
            {
                wrong.push(format!(
                    "{} was laid above {}, where no draw was",
                    stay.code, stay.cursor
                ));
            }
            let ended_here = stay.last_epoch == epoch;
            if ended_here && stay.end.is_some_and(|end| end.how == How::Drawn) {
                continue;
            }
            let passed_by = drawn.get(drawn.partition_point(|(key, _)| *key <= position.key));
            match passed_by {
                Some((_, draw)) => {
                    let left_before = ended_here && stay.end.is_some_and(|end| moment(end) <= moment(draw));
                    let expired = stay.expires_at.is_some_and(|expires_at| expires_at <= draw.at);
                    if !left_before && !expired {
                        wrong.push(format!(
                            "{} was passed over: {} was drawn though it lay behind",
                            stay.code, draw.code
                        ));
                    }
                }
                None if ended_here && stay.end.is_none() && epoch < proof.book.epoch => {
                    wrong.push(format!(
                        "{} was left, but not taken into epoch {}",
                        stay.code,
                        epoch + 1
                    ));
                }
                None => {}
            }
        }
        self.wrong.append(&mut wrong);
    }
}

/// The moment of an event: the 60 bits of time of its id. Later events of a book's draw never have an earlier one.
fn moment(leaving: &Leaving) -> u128 {
    leaving.id.as_u128() >> 64
}
