//! From a number to its code: digits in mixed radix, the first placeholder the most significant.
//!
//! Invariant: one pass of divisions a number, in 64 bits wherever the space allows, and no allocation.

use super::{
    alphabet::{Symbols, key_of},
    check::Check,
    pattern::{Element, Pattern},
};

/// Where a placeholder's symbol goes.
struct Place<'a> {
    shown_at: usize,
    key_at: usize,
    symbols: &'a Symbols,
}

/// Neighbouring placeholders whose numbers together fit into 64 bits, which divide far faster than 128.
struct Limb {
    slots: std::ops::Range<usize>,
    product: u64,
}

/// Spells one number after another into the same buffers.
pub struct Speller<'a> {
    shown: Vec<u8>,
    key: Vec<u8>,
    places: Vec<Place<'a>>,
    /// From the least significant.
    limbs: Vec<Limb>,
    check: Option<(Check, usize, usize)>,
    same: bool,
}

impl<'a> Speller<'a> {
    pub(super) fn new(pattern: &'a Pattern) -> Self {
        let (mut shown, mut key, mut places, mut check) = (Vec::new(), Vec::new(), Vec::new(), None);
        for element in &pattern.elements {
            let (shown_at, key_at) = (shown.len(), key.len());
            match element {
                Element::Literal(byte) => {
                    shown.push(*byte);
                    key.extend(key_of(*byte, pattern.exact));
                    continue;
                }
                Element::Slot(set) => places.push(Place {
                    shown_at,
                    key_at,
                    symbols: &pattern.sets[*set],
                }),
                Element::Check => check = pattern.check.map(|check| (check, shown_at, key_at)),
            }
            shown.push(b'0');
            key.push(b'0');
        }
        let same = shown == key
            && places
                .iter()
                .all(|place| place.symbols.shown == place.symbols.keys);
        let limbs = limbs(&places);
        Self {
            shown,
            key,
            places,
            limbs,
            check,
            same,
        }
    }

    /// Spells a number below the pattern's space: the key, and the code as shown if it differs.
    pub fn spell(&mut self, number: u128) -> (&str, Option<&str>) {
        let mut rest = number;
        for limb in &self.limbs {
            let mut low = match u64::try_from(rest) {
                Ok(small) => {
                    rest = u128::from(small / limb.product);
                    small % limb.product
                }
                Err(_) => {
                    let low = rest % u128::from(limb.product);
                    rest /= u128::from(limb.product);
                    u64::try_from(low).expect("a remainder is less than the divisor")
                }
            };
            for place in self.places[limb.slots.clone()].iter().rev() {
                let radix = place.symbols.len();
                let digit = (low % radix) as usize; // far below 256
                low /= radix;
                self.key[place.key_at] = place.symbols.keys[digit];
                self.shown[place.shown_at] = place.symbols.shown[digit];
            }
        }
        if let Some((check, shown_at, key_at)) = self.check {
            let character = check.character(self.places.iter().map(|place| self.key[place.key_at]));
            self.key[key_at] = character;
            self.shown[shown_at] = character;
        }
        let text = |bytes| std::str::from_utf8(bytes).expect("patterns and symbols are ASCII");
        (text(&self.key), (!self.same).then(|| text(&self.shown)))
    }
}

fn limbs(places: &[Place<'_>]) -> Vec<Limb> {
    let mut limbs = Vec::new();
    let (mut end, mut product) = (places.len(), 1u64);
    for (at, place) in places.iter().enumerate().rev() {
        match product.checked_mul(place.symbols.len()) {
            Some(larger) => product = larger,
            None => {
                limbs.push(Limb {
                    slots: at + 1..end,
                    product,
                });
                (end, product) = (at + 1, place.symbols.len());
            }
        }
    }
    limbs.push(Limb {
        slots: 0..end,
        product,
    });
    limbs
}
