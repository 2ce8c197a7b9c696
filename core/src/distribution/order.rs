//! What follows from a distribution's seed: the order of people, and in mode random who gets how many.
//!
//! Invariant: whoever is given the seed and the members recomputes both, to the bit (docs/draws.md). A person's place is
//! 63 bits of HMAC-SHA-256 (RFC 2104) of the 16 bytes of the user's id; the n-th draw takes 63 bits of that of the
//! number n in 8 bytes, so the two never meet. The database computes places by the same formula ([`super::plan`]).

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// A block of SHA-256, in bytes: what HMAC's key is padded to.
const BLOCK: usize = 64;

/// A distribution's seed.
#[derive(Clone)]
pub struct Seed(Vec<u8>);

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(…)")
    }
}

impl Seed {
    /// The caller's own, or 256 random bits as 64 hexadecimal digits. A seed is a text; its bytes are what counts.
    pub fn new(own: Option<&str>) -> Self {
        match own {
            Some(text) => Self(text.as_bytes().to_vec()),
            None => {
                let random: [u8; 32] = rand::random();
                Self(
                    random
                        .iter()
                        .flat_map(|byte| format!("{byte:02x}").into_bytes())
                        .collect(),
                )
            }
        }
    }

    /// From where it is stored.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// SHA-256 of it.
    pub fn commitment(&self) -> [u8; 32] {
        Sha256::digest(&self.0).into()
    }

    /// HMAC's key, padded and masked: what goes before the message in the inner and in the outer hash. The database has
    /// SHA-256 at hand, but HMAC only by an extension.
    pub fn pads(&self) -> ([u8; BLOCK], [u8; BLOCK]) {
        let mut key = [0; BLOCK];
        if self.0.len() > BLOCK {
            key[..32].copy_from_slice(&Sha256::digest(&self.0));
        } else {
            key[..self.0.len()].copy_from_slice(&self.0);
        }
        (key.map(|byte| byte ^ 0x36), key.map(|byte| byte ^ 0x5c))
    }

    /// A person's place in the order.
    pub fn place(&self, user_id: Uuid) -> i64 {
        i64::try_from(uniform(self.mac(), user_id.as_bytes())).expect("63 bits")
    }

    /// How many coupons each person gets when `total` are drawn for one after another, each for a random one of those
    /// who have room left. `rooms` are those of the eligible, in their order; at most 8 bytes a person are held.
    pub fn draw_counts(&self, rooms: &[u32], total: u64) -> Vec<u32> {
        let keyed = self.mac();
        let mut counts = vec![0; rooms.len()];
        let mut open: Vec<u32> = (0..)
            .zip(rooms)
            .filter(|(_, room)| **room > 0)
            .map(|(n, _)| n)
            .collect();
        let (mut left, mut number) = (total, 0_u64);
        while left > 0 && !open.is_empty() {
            let drawn = uniform(keyed.clone(), &number.to_be_bytes());
            number += 1;
            let span = open.len() as u64;
            if drawn >= (1 << 63) / span * span {
                continue; // the last, incomplete round would favour the first of them
            }
            let slot = usize::try_from(drawn % span).expect("below a length");
            let person = open[slot] as usize;
            counts[person] += 1;
            left -= 1;
            if counts[person] == rooms[person] {
                open.swap_remove(slot); // the last of those who have room takes the place
            }
        }
        counts
    }

    fn mac(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(&self.0).expect("HMAC takes a key of any length")
    }
}

fn uniform(mut mac: Hmac<Sha256>, message: &[u8]) -> u64 {
    mac.update(message);
    let digest = mac.finalize().into_bytes();
    let mut head = [0; 8];
    head.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(head) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pads_make_the_same_code_as_the_library() {
        for length in [1, 32, 63, 64, 65, 200] {
            let seed = Seed(vec![b'x'; length]);
            let user_id = Uuid::from_u128(7);
            let (inner, outer) = seed.pads();
            let inner = Sha256::new()
                .chain_update(inner)
                .chain_update(user_id.as_bytes())
                .finalize();
            let digest = Sha256::new().chain_update(outer).chain_update(inner).finalize();
            let place = u64::from_be_bytes(digest[..8].try_into().unwrap()) >> 1;
            assert_eq!(seed.place(user_id), i64::try_from(place).unwrap());
        }
    }

    #[test]
    fn draws_give_all_there_is_room_for_and_no_more() {
        let seed = Seed::new(Some("a seed"));
        let rooms = [0, 1, 2, 3, 1_000_000];
        let counts = seed.draw_counts(&rooms, 500);
        assert_eq!(counts.iter().sum::<u32>(), 500);
        assert!(counts.iter().zip(rooms).all(|(count, room)| *count <= room));
        assert_eq!(counts[1..4], [1, 2, 3]); // far more draws than that
        assert_eq!(seed.draw_counts(&[1, 2], 9), [1, 2]);
        assert_eq!(seed.draw_counts(&[], 9), [] as [u32; 0]);
    }

    #[test]
    fn each_draw_is_as_likely_for_anybody() {
        let mut firsts = [0; 4];
        for n in 0..4_000 {
            let counts = Seed::new(Some(&n.to_string())).draw_counts(&[1; 4], 1);
            firsts[counts.iter().position(|count| *count == 1).unwrap()] += 1;
        }
        assert!(
            firsts.iter().all(|first| (880..1120).contains(first)),
            "{firsts:?}"
        );
    }

    #[test]
    fn the_draws_of_a_seed_never_change_their_formula() {
        // Verifiers outside this repository recompute them.
        assert_eq!(
            Seed::new(Some("abc"))
                .draw_counts(&[2, 2, 2, 2], 5)
                .iter()
                .sum::<u32>(),
            5
        );
        let mut mac = Hmac::<Sha256>::new_from_slice(b"abc").unwrap();
        mac.update(&[0; 8]);
        let first = u64::from_be_bytes(mac.finalize().into_bytes()[..8].try_into().unwrap()) >> 1;
        let counts = Seed::new(Some("abc")).draw_counts(&[9; 7], 1);
        assert_eq!(counts[usize::try_from(first % 7).unwrap()], 1);
    }
}
