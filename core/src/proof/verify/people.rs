//! The distribution: whose turn it was, and that what it gave were draws of the book.

use std::collections::HashMap;

use super::Check;
use crate::{distribution::order::Seed, proof::How};

impl Check<'_> {
    /// The order of people, and in mode random who gets how many, follow from the distribution's seed.
    pub(super) fn people(&mut self, seed: &Seed) {
        let proof = self.proof;
        let mut before = None;
        for item in &proof.items {
            let place = seed.place(item.user_id);
            if item.place != place.to_string() {
                self.fault(format!(
                    "{} has the place {place}, not {}",
                    item.user_id, item.place
                ));
            }
            if before.is_some_and(|before| before >= (place, item.user_id)) {
                self.fault(format!("{} is out of order among the people", item.user_id));
            }
            before = Some((place, item.user_id));
        }
        let taking: Vec<_> = proof
            .items
            .iter()
            .filter(|item| item.state != "left_out")
            .collect();
        let counts = (proof.distribution.mode == "random").then(|| {
            let rooms: Vec<u32> = taking.iter().map(|item| item.room.unwrap_or(0)).collect();
            seed.draw_counts(&rooms, proof.distribution.planned.unsigned_abs())
        });
        for (index, item) in taking.into_iter().enumerate() {
            let wanted = match &counts {
                Some(counts) => i64::from(counts[index]),
                None if proof.distribution.mode == "equal" => {
                    i64::from(proof.distribution.per_user.unwrap_or(0))
                }
                None => i64::from(
                    item.wanted
                        .clamp(1, proof.distribution.per_user.unwrap_or(0).max(1)),
                ),
            };
            if i64::from(item.wanted) != wanted {
                self.fault(format!(
                    "{} was to get {wanted}, not {}",
                    item.user_id, item.wanted
                ));
            }
        }
    }

    /// The coupons of the distribution are draws of the book, in order, for these people, in order.
    pub(super) fn given(&mut self) {
        let proof = self.proof;
        let places: HashMap<_, usize> = proof
            .items
            .iter()
            .enumerate()
            .map(|(place, item)| (item.user_id, place))
            .collect();
        let mut counts = vec![0; proof.items.len()];
        let (mut last_draw, mut last_place) = ((0, -1), 0);
        for (seq, given) in (1..).zip(&proof.coupons) {
            let (code, user_id) = (&given.code, given.user_id);
            if given.seq != seq {
                self.fault(format!("coupon {seq} of the distribution is missing"));
            }
            let stays = self.by_code.get(code.as_str()).into_iter().flatten();
            let draws = stays.map(|stay| &self.stays[*stay]);
            let drawn = draws
                .filter(|stay| stay.end.is_some_and(|end| end.how == How::Drawn))
                .find(|stay| stay.last_key.to_string() == given.draw_key);
            let Some(drawn) = drawn else {
                self.fault(format!(
                    "{code} was not drawn at {}, as the distribution says",
                    given.draw_key
                ));
                continue;
            };
            let draw = (drawn.last_epoch, drawn.last_key);
            let winner = drawn.end.and_then(|end| end.user_id);
            if winner != Some(user_id) {
                self.fault(format!("{code} was drawn for somebody else than {user_id}"));
            }
            if draw < last_draw {
                self.fault(format!(
                    "{code} is out of order among the coupons of the distribution"
                ));
            }
            last_draw = draw;
            match places.get(&user_id) {
                None => self.fault(format!("{user_id} got {code} and is none of the people")),
                Some(&place) => {
                    counts[place] += 1;
                    if place < last_place {
                        self.fault(format!("{user_id} got {code} out of turn"));
                    }
                    last_place = place;
                }
            }
        }
        for (item, count) in proof.items.iter().zip(counts) {
            if item.assigned != count || (item.state == "given" && item.assigned != item.wanted) {
                self.fault(format!("{} got {count}, not {}", item.user_id, item.assigned));
            }
        }
    }
}
