//! A keyed permutation of 0 … n - 1 for any n: which code comes n-th, known only to who has the key.
//!
//! A Feistel network over Z_a × Z_b, a and b within one of √n and a · b ≥ n, whose halves take turns in being added to
//! (as in FF1, NIST SP 800-38G): x ← x + F(y) mod a, then y ← y + F(x) mod b, ten rounds, F being AES-128 of the round's
//! number and the half, brought into the range by the upper half of a product (bias below 2⁻⁶⁷). What falls at n or
//! above is put through again until it does not (cycle walking: J. Black, P. Rogaway, "Ciphers with Arbitrary Finite
//! Domains", CT-RSA 2002); with these a and b that is about one in √n. Each round can be undone, so the whole is one to
//! one; docs/security.md says why it looks like a random one.
//!
//! Invariant: the same key, size and number give the same result for ever (golden vectors below): a step that is run again must
//! make the same codes.

use aes::{
    Aes128, Block,
    cipher::{BlockEncrypt, KeyInit},
};

/// As many as FF1 has.
const ROUNDS: u8 = 10;

/// Numbers at once: an AES instruction takes some cycles, but a new one can begin in each.
const LANES: usize = 8;

/// A permutation; it has no `Debug`, since it holds a key.
#[derive(Clone)]
pub struct Permutation {
    cipher: Aes128,
    left: u64,
    right: u64,
    size: u128,
}

impl Permutation {
    /// The permutation of 0 … `size` - 1 under a key.
    ///
    /// # Panics
    /// When `size` is 0 or more than 2¹²⁰.
    pub fn new(key: &[u8; 16], size: u128) -> Self {
        assert!((1..=super::pattern::MAX_SPACE).contains(&size));
        let floor = size.isqrt();
        let left = floor + u128::from(floor * floor < size);
        let half = |value| u64::try_from(value).expect("a half has at most 61 bits");
        Self {
            cipher: Aes128::new(key.into()),
            left: half(left),
            right: half(size.div_ceil(left)),
            size,
        }
    }

    /// The image of one number below the size.
    pub fn apply(&self, number: u128) -> u128 {
        let mut images = [number; 1];
        self.apply_all(&mut images);
        images[0]
    }

    /// Puts the images in the place of numbers, all below the size.
    pub fn apply_all(&self, numbers: &mut [u128]) {
        for chunk in numbers.chunks_mut(LANES) {
            let mut lanes = [0; LANES];
            lanes[..chunk.len()].copy_from_slice(chunk);
            self.pass(&mut lanes);
            while lanes.iter().any(|image| *image >= self.size) {
                let mut again = lanes;
                self.pass(&mut again);
                for (image, next) in lanes.iter_mut().zip(again) {
                    if *image >= self.size {
                        *image = next;
                    }
                }
            }
            chunk.copy_from_slice(&lanes[..chunk.len()]);
        }
    }

    /// Once through the network, over the whole of Z_a × Z_b.
    fn pass(&self, numbers: &mut [u128; LANES]) {
        let (mut lefts, mut rights) = ([0; LANES], [0; LANES]);
        for lane in 0..LANES {
            (lefts[lane], rights[lane]) = self.split(numbers[lane]);
        }
        for round in 0..ROUNDS {
            if round % 2 == 0 {
                self.round(round, &rights, &mut lefts, self.left);
            } else {
                self.round(round, &lefts, &mut rights, self.right);
            }
        }
        for lane in 0..LANES {
            numbers[lane] = u128::from(lefts[lane]) * u128::from(self.right) + u128::from(rights[lane]);
        }
    }

    fn split(&self, number: u128) -> (u64, u64) {
        match u64::try_from(number) {
            Ok(number) => (number / self.right, number % self.right),
            Err(_) => {
                let right = u128::from(self.right);
                // Both are below 2⁶¹, since the number is below a · b.
                ((number / right) as u64, (number % right) as u64)
            }
        }
    }

    #[inline]
    fn round(&self, round: u8, from: &[u64; LANES], to: &mut [u64; LANES], modulus: u64) {
        let mut blocks = [Block::default(); LANES];
        for (block, half) in blocks.iter_mut().zip(from) {
            *block = (u128::from(round) << 64 | u128::from(*half)).to_le_bytes().into();
        }
        self.cipher.encrypt_blocks(&mut blocks);
        for (half, block) in to.iter_mut().zip(blocks) {
            let sum = *half + scale(u128::from_le_bytes(block.into()), modulus);
            *half = if sum >= modulus { sum - modulus } else { sum };
        }
    }
}

/// ⌊random · modulus / 2¹²⁸⌋, which is below the modulus and as good as uniform.
fn scale(random: u128, modulus: u64) -> u64 {
    let modulus = u128::from(modulus);
    let low = (random as u64 as u128 * modulus) >> 64;
    (((random >> 64) * modulus + low) >> 64) as u64 // below the modulus
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> [u8; 16] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&number.to_le_bytes());
        key
    }

    #[test]
    fn every_size_is_permuted_one_to_one() {
        let large = [1_000, 1_023, 1_024, 1_025, 10_007, 65_537, 100_000];
        for size in (1..=130).chain(large) {
            let permutation = Permutation::new(&key(size as u64), size);
            let mut images: Vec<u128> = (0..size).collect();
            permutation.apply_all(&mut images);
            for (number, image) in images.iter().enumerate().step_by(size.div_ceil(20) as usize) {
                assert_eq!(
                    permutation.apply(number as u128),
                    *image,
                    "alone or among others, of {size}"
                );
            }
            images.sort_unstable();
            assert!(images.iter().copied().eq(0..size), "of {size}");
        }
    }

    /// Should one of these ever change, a job that is under way would make other codes after an update than before. They
    /// agree with a second implementation, written from the description above in another language.
    #[test]
    fn the_permutation_never_changes() {
        let key: [u8; 16] = std::array::from_fn(|place| place as u8);
        let golden = [
            (10, [4, 9, 0]),
            (1_000, [811, 910, 803]),
            (
                36u128.pow(8),
                [2_137_284_377_979, 2_678_247_956_395, 300_965_197_315],
            ),
            (
                30u128.pow(16),
                [
                    105_059_278_316_897_044_175_922,
                    426_901_462_179_481_345_523_745,
                    44_881_456_461_669_055_944_828,
                ],
            ),
            (
                1 << 120,
                [
                    1_235_805_236_031_196_478_829_640_021_030_845_510,
                    380_261_260_752_620_442_589_815_664_659_232_472,
                    259_201_696_016_828_164_528_848_130_713_906_622,
                ],
            ),
        ];
        for (size, expected) in golden {
            let permutation = Permutation::new(&key, size);
            assert_eq!(
                [0, 1, size - 1].map(|number| permutation.apply(number)),
                expected,
                "of {size}"
            );
        }
    }

    /// χ² of counts that should all be alike (mean: cells - 1, variance: twice that), as standard deviations.
    fn deviation(counts: &[u32]) -> f64 {
        let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
        let chi2: f64 = counts
            .iter()
            .map(|count| (f64::from(*count) - expected).powi(2) / expected)
            .sum();
        let freedom = (counts.len() - 1) as f64;
        (chi2 - freedom) / (2.0 * freedom).sqrt()
    }

    /// Over many keys each number is equally likely to come first, and each pair to come first and second.
    #[test]
    fn over_the_keys_every_beginning_is_equally_likely() {
        for size in [2usize, 3, 5, 7, 10] {
            let (mut first, mut pairs) = (vec![0; size], vec![0; size * size]);
            for number in 0..20_000 {
                let permutation = Permutation::new(&key(number), size as u128);
                let (a, b) = (permutation.apply(0) as usize, permutation.apply(1) as usize);
                first[a] += 1;
                pairs[a * size + b] += 1;
            }
            let possible: Vec<u32> = (0..size * size)
                .filter(|at| at / size != at % size)
                .map(|at| pairs[at])
                .collect();
            assert!(deviation(&first) < 5.0 && deviation(&possible) < 5.0, "of {size}");
        }
    }

    /// Under one key the first numbers of a large space lie everywhere, and neighbours have nothing to do with each other.
    #[test]
    fn under_one_key_neighbours_are_independent() {
        let size = 36u128.pow(8);
        let mut images: Vec<u128> = (0..40_000).collect();
        Permutation::new(&key(1), size).apply_all(&mut images);
        let cell = |image: u128| (image * 16 / size) as usize;
        let (mut low, mut pairs, mut steps) = (vec![0; 36], vec![0; 256], vec![0; 16]);
        for pair in images.windows(2) {
            low[(pair[0] % 36) as usize] += 1;
            pairs[cell(pair[0]) * 16 + cell(pair[1])] += 1;
            steps[cell((pair[1] + size - pair[0]) % size)] += 1;
        }
        for counts in [low, pairs, steps] {
            assert!(deviation(&counts) < 5.0);
        }
    }
}
