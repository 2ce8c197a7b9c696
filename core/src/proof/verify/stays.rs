//! Who was in the draw, from when until when.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::{Check, Stay};
use crate::proof::How;

impl<'a> Check<'a> {
    /// Arrival numbers run through, and epoch and cursor never go back.
    pub(super) fn arrivals(&mut self) {
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
    pub(super) fn ends(&mut self) {
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
}
