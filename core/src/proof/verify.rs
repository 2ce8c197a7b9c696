//! Verifying a proof: doing the draws again, and saying what does not fit.
//!
//! Each stay of a code in the draw begins with an arrival (or a return) and ends with a leaving; in between it may be
//! keyed anew, so it has one key in each epoch of its stay. The claim that is checked, epoch by epoch: draws went
//! upwards through the keys and left nothing out that was there, unless it had expired or had left otherwise.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::{FORMAT, How, Leaving, Proof};
use crate::{coupon::draw, distribution::order::Seed};

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

/// Where a stay has its key in an epoch.
#[derive(Clone, Copy)]
struct Position {
    key: i64,
    stay: usize,
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

impl<'a> Check<'a> {
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
        let epochs = self.keys(&seed);
        for (epoch, positions) in epochs {
            self.epoch(epoch, positions);
        }
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

    /// Arrival numbers run through, and epoch and cursor never go back.
    fn arrivals(&mut self) {
        let proof = self.proof;
        let mut codes = proof.codes.iter();
        let mut returns = proof.returns.iter().peekable();
        let mut chunks = proof.chunks.iter().peekable();
        let (mut next, mut before) = (0, (0, 0));
        loop {
            let of_chunk = chunks.peek().map(|chunk| chunk.first_arrival);
            let of_return = returns.peek().map(|back| back.arrival);
            let (number, epoch, cursor, count) = match (of_chunk, of_return) {
                (None, None) => break,
                (Some(number), back) if back.is_none_or(|back| number <= back) => {
                    let Some(chunk) = chunks.next() else { break };
                    let cursor = self.number("the cursor of a chunk", &chunk.cursor);
                    let mut last: Option<&str> = None;
                    for place in 0..chunk.count {
                        let Some((code, expires_at)) = codes.next() else {
                            self.fault(format!(
                                "a code is missing: the chunk of arrival {number} has {}",
                                chunk.count
                            ));
                            break;
                        };
                        if last.is_some_and(|last| last.as_bytes() >= code.as_bytes()) {
                            self.fault(format!("{code} is out of order in the chunk of arrival {number}"));
                        }
                        last = Some(code);
                        if self.by_code.contains_key(code.as_str()) {
                            self.fault(format!("{code} arrived twice"));
                        }
                        self.stay(code, *expires_at, number + place, chunk.epoch, cursor);
                    }
                    (number, chunk.epoch, cursor, chunk.count)
                }
                _ => {
                    let Some(back) = returns.next() else { break };
                    let cursor = self.number("the cursor of a return", &back.cursor);
                    match self
                        .by_code
                        .get(back.code.as_str())
                        .and_then(|stays| stays.first())
                    {
                        Some(first) => {
                            let expires_at = self.stays[*first].expires_at;
                            self.stay(&back.code, expires_at, back.arrival, back.epoch, cursor);
                        }
                        None => self.fault(format!("{} came back and never arrived", back.code)),
                    }
                    (back.arrival, back.epoch, cursor, 1)
                }
            };
            if number != next {
                self.fault(format!("arrival {next} is missing: {number} follows"));
            }
            next = number + count;
            if (epoch, cursor) < before {
                self.fault(format!("the cursor went back before arrival {number}"));
            }
            before = (epoch, cursor);
        }
        if let Some((code, _)) = codes.next() {
            self.fault(format!("{code} belongs to no chunk"));
        }
        if next != proof.book.arrivals {
            self.fault(format!("{next} codes arrived, not {}", proof.book.arrivals));
        }
    }

    fn stay(
        &mut self,
        code: &'a str,
        expires_at: Option<DateTime<Utc>>,
        arrival: i64,
        epoch: i32,
        cursor: i64,
    ) {
        self.by_code.entry(code).or_default().push(self.stays.len());
        self.stays.push(Stay {
            code,
            expires_at,
            arrival,
            epoch,
            cursor,
            end: None,
            last_epoch: epoch,
            last_key: 0,
        });
    }

    /// The n-th leaving of a code ends its n-th stay.
    fn ends(&mut self) {
        let mut ended: HashMap<&str, usize> = HashMap::new();
        for leaving in &self.proof.leavings {
            let code = leaving.code.as_str();
            let number = ended.entry(code).or_default();
            let stay = self
                .by_code
                .get(code)
                .and_then(|stays| stays.get(*number))
                .copied();
            *number += 1;
            let first = *number == 1;
            match stay {
                Some(_) if leaving.how == How::Held && !first => {
                    self.fault(format!(
                        "{code} is said to have come with a holder, but had left before"
                    ));
                }
                Some(stay) => self.stays[stay].end = Some(leaving),
                None => self.fault(format!("{code} left the draw without being in it")),
            }
        }
        let by_code: Vec<(&str, usize)> = self
            .by_code
            .iter()
            .map(|(code, stays)| (*code, stays.len()))
            .collect();
        for (code, stays) in by_code {
            if ended.get(code).copied().unwrap_or(0) + 1 < stays {
                self.fault(format!("{code} came back without having left: a draw is missing"));
            }
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

    /// The order of people, and in mode random who gets how many, follow from the distribution's seed.
    fn people(&mut self, seed: &Seed) {
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
    fn given(&mut self) {
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

/// The moment of an event: the 60 bits of time of its id. Later events of a book's draw never have an earlier one.
fn moment(leaving: &Leaving) -> u128 {
    leaving.id.as_u128() >> 64
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    let pairs = bytes
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    bytes.len().is_multiple_of(2).then(|| pairs.collect())?
}
