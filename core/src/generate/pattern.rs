//! Patterns: how generated codes are spelled, and from a number to its code.
//!
//! `#` is a digit, `?` an upper-case letter, `*` a symbol of the alphabet (letters and digits if none is given), `\` makes
//! the next character a literal, everything else is one. A check character stands behind the last placeholder.
//!
//! Invariant: numbers below [`Pattern::space`] and codes of the pattern are one to one, also as keys, and in the same
//! order: the first placeholder is the most significant digit of a number in mixed radix.

use sha2::{Digest, Sha256};

use super::{
    alphabet::{DIGITS, LETTERS, Symbols, key_of},
    check::Check,
    speller::Speller,
};
use crate::{
    coupon::code::MAX_LENGTH,
    error::{Code, Unfit},
};

/// The most codes that a pattern may spell: numbers and halves of them then fit into 128 and 64 bits with room to add.
/// 23 letters or digits are within it, and nobody guesses one of those.
pub const MAX_SPACE: u128 = 1 << 120;

/// A pattern as somebody gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given<'a> {
    /// The text.
    pub pattern: &'a str,
    /// What `*` stands for: a name or the symbols.
    pub alphabet: Option<&'a str>,
    /// Whether a check character is wanted.
    pub check: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    /// Itself.
    Literal(u8),
    /// A placeholder, and which of the sets it draws from.
    Slot(usize),
    /// The check character.
    Check,
}

/// A pattern that has been read for a book of exact codes or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    pub(super) elements: Vec<Element>,
    pub(super) sets: [Symbols; 3],
    pub(super) check: Option<Check>,
    pub(super) exact: bool,
    space: u128,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// `pattern_invalid`, with the place.
    pub fn parse(given: Given<'_>, exact: bool) -> Result<Self, Unfit> {
        let sets = [
            Symbols::of(DIGITS),
            Symbols::of(LETTERS),
            Symbols::parse(given.alphabet, exact)?,
        ];
        let mut elements = Vec::new();
        let mut text = given.pattern.chars().zip(1..);
        while let Some((symbol, column)) = text.next() {
            elements.push(match symbol {
                '#' => Element::Slot(0),
                '?' => Element::Slot(1),
                '*' => Element::Slot(2),
                '\\' => match text.next() {
                    Some((escaped, column)) => Element::Literal(literal(escaped, column)?),
                    None => {
                        let detail = format!(
                            "Character {column}: a \\ at the end has nothing to escape; write \\\\ for one."
                        );
                        return Err(fault("dangling_escape", detail));
                    }
                },
                symbol => Element::Literal(literal(symbol, column)?),
            });
        }
        let mut pattern = Self {
            elements,
            sets,
            check: None,
            exact,
            space: 0,
        };
        let Some(last) = pattern.last_slot() else {
            return Err(fault(
                "no_placeholder",
                "The pattern has no placeholder: # is a digit, ? a letter, * either.".into(),
            ));
        };
        if given.check {
            pattern.check = Some(pattern.find_check()?);
            pattern.elements.insert(last + 1, Element::Check);
        }
        pattern.space = pattern.measure()?;
        pattern.check_code_form()?;
        Ok(pattern)
    }

    /// How many codes it spells.
    pub fn space(&self) -> u128 {
        self.space
    }

    /// How many characters each has.
    pub fn length(&self) -> usize {
        self.elements.len()
    }

    /// SHA-256 of what tells its codes from those of others, as far as keys do: patterns that differ only in spaces,
    /// dashes and case (unless codes are exact) or in the order of an alphabet spell the same codes and have the same
    /// one. It tweaks the book's key, so its bytes never change.
    pub fn tweak(&self) -> [u8; 32] {
        let mut hash = Sha256::new_with_prefix(b"coupon-book pattern 1");
        for element in &self.elements {
            match element {
                Element::Literal(byte) => match key_of(*byte, self.exact) {
                    Some(key) => hash.update([0, key]),
                    None => continue,
                },
                Element::Slot(set) => {
                    let keys = &self.sets[*set].keys;
                    hash.update([1, u8::try_from(keys.len()).unwrap_or(u8::MAX)]);
                    hash.update(keys);
                }
                Element::Check => hash.update([2]),
            }
        }
        hash.finalize().into()
    }

    /// The length of codes that there are at least `wanted` of, if the last placeholder is repeated; `None` when no code
    /// is as long.
    pub fn length_for(&self, wanted: u128) -> Option<usize> {
        let Some(Element::Slot(set)) = self.last_slot().map(|last| self.elements[last]) else {
            return None;
        };
        let radix = u128::from(self.sets[set].len());
        let (mut space, mut length) = (self.space, self.length());
        while space < wanted {
            space = space.saturating_mul(radix);
            length += 1;
        }
        (length <= MAX_LENGTH && space <= MAX_SPACE).then_some(length)
    }

    /// Whether a code with this key is one of the pattern's, its check character included.
    pub fn fits(&self, key: &str) -> bool {
        let mut rest = key.bytes();
        let mut typed = Vec::new(); // what the check character is of
        for element in &self.elements {
            let expected = match element {
                Element::Literal(byte) => match key_of(*byte, self.exact) {
                    None => continue,
                    expected => expected,
                },
                Element::Slot(_) => None,
                Element::Check => self.check.map(|check| check.character(typed.iter().copied())),
            };
            let Some(byte) = rest.next() else {
                return false;
            };
            match (element, expected) {
                (Element::Slot(set), _) if self.sets[*set].keys.contains(&byte) => typed.push(byte),
                (Element::Literal(_) | Element::Check, Some(expected)) if expected == byte => {}
                _ => return false,
            }
        }
        rest.next().is_none()
    }

    /// Spells numbers out.
    pub fn speller(&self) -> Speller<'_> {
        Speller::new(self)
    }

    fn last_slot(&self) -> Option<usize> {
        self.elements
            .iter()
            .rposition(|element| matches!(element, Element::Slot(_)))
    }

    fn slots(&self) -> impl DoubleEndedIterator<Item = &Symbols> + Clone {
        self.elements.iter().filter_map(|element| match element {
            Element::Slot(set) => Some(&self.sets[*set]),
            _ => None,
        })
    }

    fn find_check(&self) -> Result<Check, Unfit> {
        let keys = self.slots().flat_map(|set| set.keys.iter().copied());
        let named = self.slots().all(|set| set.named);
        Check::over(keys).filter(|_| named).ok_or_else(|| {
            Unfit::at(
                Code::PatternInvalid,
                "/check",
                "not_possible",
                "A check character is made for the alphabets that have names, not for a list of symbols.",
            )
        })
    }

    fn measure(&self) -> Result<u128, Unfit> {
        if self.length() > MAX_LENGTH {
            let detail = format!(
                "A code has at most {MAX_LENGTH} characters; these would have {}.",
                self.length()
            );
            return Err(fault("too_long", detail));
        }
        self.slots()
            .try_fold(1u128, |space, set| space.checked_mul(u128::from(set.len())))
            .filter(|space| *space <= MAX_SPACE)
            .ok_or_else(|| {
                fault(
                    "too_many_codes",
                    "The pattern spells more than 2^120 codes; fewer placeholders are as safe from guessing."
                        .into(),
                )
            })
    }

    /// Every code that is spelled must be one that a person can type and a URL can carry.
    fn check_code_form(&self) -> Result<(), Unfit> {
        if [self.elements.first(), self.elements.last()].contains(&Some(&Element::Literal(b' '))) {
            let detail = "A code neither begins nor ends with a space.";
            return Err(fault("bad_character", detail.into()));
        }
        let may_be_dot = |element: &Element| match element {
            Element::Literal(byte) => *byte == b'.',
            Element::Slot(set) => self.sets[*set].shown.contains(&b'.'),
            Element::Check => false,
        };
        if self.length() <= 2 && self.elements.iter().all(may_be_dot) {
            let detail = "The pattern spells . or .., which no URL can carry.";
            return Err(fault("bad_character", detail.into()));
        }
        Ok(())
    }
}

fn fault(code: &'static str, detail: String) -> Unfit {
    Unfit::at(Code::PatternInvalid, "/pattern", code, detail)
}

fn literal(symbol: char, column: usize) -> Result<u8, Unfit> {
    u8::try_from(symbol)
        .ok()
        .filter(|byte| (b' '..=b'~').contains(byte))
        .ok_or_else(|| {
            let detail =
                format!("Character {column} is not printable ASCII, which is all that codes are made of.");
            fault("bad_character", detail)
        })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{coupon::code::Code as CouponCode, generate::permutation::Permutation};

    fn read(pattern: &str, alphabet: Option<&str>, check: bool, exact: bool) -> Result<Pattern, Unfit> {
        let given = Given {
            pattern,
            alphabet,
            check,
        };
        Pattern::parse(given, exact)
    }

    fn spelled(pattern: &Pattern, number: u128) -> (String, String) {
        let mut speller = pattern.speller();
        let (key, shown) = speller.spell(number);
        (key.to_owned(), shown.unwrap_or(key).to_owned())
    }

    #[test]
    fn numbers_are_spelled_in_order() {
        let pattern = read(r"x-#?\*\#*", Some("ba"), false, false).unwrap();
        assert_eq!(pattern.space(), 10 * 26 * 2);
        assert_eq!(spelled(&pattern, 0), ("X0A*#A".into(), "x-0A*#a".into()));
        assert_eq!(spelled(&pattern, 1).1, "x-0A*#b");
        assert_eq!(spelled(&pattern, 2).1, "x-0B*#a");
        assert_eq!(spelled(&pattern, 519).1, "x-9Z*#b");
        let checked = read("AB-##!", None, true, false).unwrap();
        assert_eq!((checked.space(), checked.length()), (100, 7));
        assert_eq!(spelled(&checked, 57).1, "AB-577!");
        assert_eq!(
            spelled(&read("####", None, false, true).unwrap(), 42),
            ("0042".into(), "0042".into())
        );
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_its_place() {
        for (pattern, alphabet, check, pointer, word) in [
            ("", None, false, "/pattern", "no_placeholder"),
            (r"ABC\#", None, false, "/pattern", "no_placeholder"),
            (r"##\", None, false, "/pattern", "dangling_escape"),
            ("#é", None, false, "/pattern", "bad_character"),
            ("#\\\u{1}", None, false, "/pattern", "bad_character"),
            ("# ", None, false, "/pattern", "bad_character"),
            (" #", None, false, "/pattern", "bad_character"),
            ("*", Some("ab."), false, "/pattern", "bad_character"),
            (".*", Some("ab."), false, "/pattern", "bad_character"),
            (
                "************************",
                None,
                false,
                "/pattern",
                "too_many_codes",
            ),
            ("##", Some("aa"), false, "/alphabet", "duplicate"),
            ("#*", Some("abc"), true, "/check", "not_possible"),
        ] {
            let unfit = read(pattern, alphabet, check, false).unwrap_err();
            assert_eq!(
                (unfit.fault.pointer.as_str(), unfit.fault.code),
                (pointer, word),
                "{pattern:?}"
            );
            assert_eq!(unfit.code, Code::PatternInvalid);
        }
        let long = "A".repeat(96);
        assert!(read(&format!("{long}####"), None, false, false).is_ok());
        assert_eq!(
            read(&format!("{long}####"), None, true, false)
                .unwrap_err()
                .fault
                .code,
            "too_long"
        );
        assert!(read("***********************", None, false, false).is_ok());
        assert!(read("**.", Some("ab."), false, false).is_ok());
        assert!(read("#", Some("abc"), true, false).is_ok()); // the list is not used
    }

    #[test]
    fn patterns_that_spell_the_same_codes_have_the_same_tweak() {
        let tweak = |pattern, alphabet, check, exact| read(pattern, alphabet, check, exact).unwrap().tweak();
        let plain = tweak("AB-**", Some("XYZ"), false, false);
        assert_eq!(plain, tweak("a b**", Some("zyx"), false, false));
        for other in [
            tweak("AB-**", Some("XYZ"), false, true),
            tweak("AB-**", Some("WXYZ"), false, false),
            tweak("AB-***", Some("XYZ"), false, false),
            tweak("AC-**", Some("XYZ"), false, false),
        ] {
            assert_ne!(plain, other);
        }
        assert_ne!(tweak("##", None, true, false), tweak("##", None, false, false));
    }

    #[test]
    fn the_needed_length_is_that_of_a_longer_pattern() {
        let pattern = read("AB-##", None, false, false).unwrap();
        assert_eq!(pattern.length_for(100), Some(5));
        assert_eq!(pattern.length_for(101), Some(6));
        assert_eq!(pattern.length_for(1_000_000), Some(9));
        assert_eq!(pattern.length_for(MAX_SPACE + 1), None);
    }

    #[test]
    fn every_single_error_and_every_swap_of_digits_fits_no_checked_pattern() {
        let pattern = read("P-###-##", None, true, false).unwrap();
        let mut speller = pattern.speller();
        for number in (0..100_000).step_by(997) {
            let key = speller.spell(number).0.as_bytes().to_vec();
            let fits = |key: &[u8]| pattern.fits(std::str::from_utf8(key).unwrap());
            assert!(fits(&key));
            for at in 1..key.len() {
                for digit in (b'0'..=b'9').filter(|digit| *digit != key[at]) {
                    let mut wrong = key.clone();
                    wrong[at] = digit;
                    assert!(!fits(&wrong));
                }
                let mut swapped = key.clone();
                swapped.swap(at - 1, at);
                assert!(swapped == key || !fits(&swapped));
            }
        }
    }

    fn patterns() -> impl Strategy<Value = (String, Option<String>, bool, bool)> {
        let element = prop_oneof![
            Just("#"),
            Just("?"),
            Just("*"),
            Just("-"),
            Just("a"),
            Just("\\*"),
            Just("Q")
        ];
        let alphabet = prop_oneof![
            Just(None),
            Just(Some("digits")),
            Just(Some("unambiguous")),
            Just(Some("letters")),
            Just(Some("zxy")),
            Just(Some("01")),
            Just(Some("!.$%"))
        ];
        (
            prop::collection::vec(element, 1..30),
            alphabet,
            any::<bool>(),
            any::<bool>(),
        )
            .prop_map(|(elements, alphabet, check, exact)| {
                (elements.concat(), alphabet.map(str::to_owned), check, exact)
            })
    }

    proptest! {
        #[test]
        fn what_is_spelled_is_a_code_fits_and_keeps_the_order((text, alphabet, check, exact) in patterns(), seed: [u128; 6]) {
            let Ok(pattern) = read(&text, alphabet.as_deref(), check, exact) else { return Ok(()) };
            let mut numbers: Vec<u128> = seed.iter().map(|number| number % pattern.space()).collect();
            numbers.extend([0, pattern.space() - 1]);
            numbers.sort_unstable();
            numbers.dedup();
            let mut keys = Vec::new();
            for number in &numbers {
                let (key, shown) = spelled(&pattern, *number);
                let code = CouponCode::parse(&shown).unwrap();
                prop_assert_eq!(code.key(exact), &key);
                prop_assert_eq!(code.shown(), &shown);
                prop_assert_eq!(shown.len(), pattern.length());
                prop_assert!(pattern.fits(&key));
                prop_assert!(!pattern.fits(&key[1..]));
                keys.push(key);
            }
            prop_assert!(keys.is_sorted());
            let distinct: HashSet<&String> = keys.iter().collect();
            prop_assert_eq!(distinct.len(), numbers.len());
        }

        #[test]
        fn a_small_space_is_spelled_as_a_whole_and_nothing_twice(
            (text, alphabet, check, exact) in patterns(), key: [u8; 16],
        ) {
            let Ok(pattern) = read(&text, alphabet.as_deref(), check, exact) else { return Ok(()) };
            let size = pattern.space().min(3_000);
            let permutation = Permutation::new(&key, pattern.space());
            let mut numbers: Vec<u128> = (0..size).collect();
            permutation.apply_all(&mut numbers);
            let codes: HashSet<String> = numbers.iter().map(|number| spelled(&pattern, *number).0).collect();
            prop_assert_eq!(codes.len() as u128, size);
        }
    }
}
