//! Unpacking a stream as it comes in: gzip (RFC 1952), Zstandard (RFC 8878) or nothing, told by the first bytes.
//!
//! Invariant: one call of [`Inflate::push`] gives at most [`MOST_AT_ONCE`] bytes and holds no more than a window, so a
//! small file that unpacks to a huge one is noticed on the way and never held in memory.

use std::io::Write;

use flate2::write::MultiGzDecoder;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Packed bytes given to gzip at once; deflate (RFC 1951) unpacks to at most 1,032 times as much.
const GZIP_SLICE: usize = 4 << 10;

/// The most that one call gives: a slice of gzip at its greatest ratio, or a window of Zstandard.
pub const MOST_AT_ONCE: usize = 9 << 20;

/// The largest window that RFC 8878 recommends a decoder to support; more needs `--long` or `--ultra` when packing.
const ZSTD_WINDOW: u64 = 8 << 20;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The longest frame header (RFC 8878, 3.1.1.1) with its magic number.
const ZSTD_HEADER: usize = 18;

/// Why a stream cannot be unpacked, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InflateError(pub String);

/// A stream being unpacked.
#[derive(Default)]
pub struct Inflate {
    input: Vec<u8>,
    kind: Kind,
}

#[derive(Default)]
enum Kind {
    #[default]
    Unknown,
    Plain,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Zstd(Box<Zstd>),
}

impl Inflate {
    /// Takes what came in from `input` and appends what it unpacks to; call it until it gives `false`.
    /// `last` says that nothing follows `input`.
    ///
    /// # Errors
    /// When the bytes are damaged, cut, or packed with a window that is too large.
    pub fn push(&mut self, input: &mut &[u8], last: bool, out: &mut Vec<u8>) -> Result<bool, InflateError> {
        if matches!(self.kind, Kind::Unknown) {
            self.input.extend_from_slice(input);
            *input = &[];
            if self.input.len() < 4 && !last {
                return Ok(false);
            }
            self.kind = match self.input.as_slice() {
                [0x1f, 0x8b, ..] => Kind::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
                bytes if is_zstd(bytes) => Kind::Zstd(Box::default()),
                _ => Kind::Plain,
            };
        }
        match &mut self.kind {
            Kind::Unknown => Ok(false),
            Kind::Plain => {
                out.append(&mut self.input);
                out.extend_from_slice(input);
                *input = &[];
                Ok(false)
            }
            Kind::Gzip(decoder) => {
                self.input.extend_from_slice(input);
                *input = &[];
                let slice = self.input.len().min(GZIP_SLICE);
                decoder.write_all(&self.input[..slice]).map_err(damaged)?;
                self.input.drain(..slice);
                let more = !self.input.is_empty();
                if last && !more {
                    decoder.try_finish().map_err(damaged)?;
                }
                out.append(decoder.get_mut());
                Ok(more)
            }
            Kind::Zstd(decoder) => {
                self.input.extend_from_slice(input);
                *input = &[];
                decoder.advance(&mut self.input, last, out)
            }
        }
    }
}

fn is_zstd(bytes: &[u8]) -> bool {
    bytes.starts_with(&ZSTD_MAGIC) || is_skippable(bytes)
}

fn is_skippable(bytes: &[u8]) -> bool {
    matches!(bytes, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

fn damaged(error: impl std::fmt::Display) -> InflateError {
    InflateError(format!("The packed file is damaged or cut: {error}."))
}

/// Zstandard, one block at a time: each block is decoded once all of it is here.
#[derive(Default)]
struct Zstd {
    decoder: FrameDecoder,
    frame: Option<Frame>,
    skip: usize,
}

struct Frame {
    checksum: bool,
}

impl Zstd {
    fn advance(&mut self, input: &mut Vec<u8>, last: bool, out: &mut Vec<u8>) -> Result<bool, InflateError> {
        let skipped = self.skip.min(input.len());
        input.drain(..skipped);
        self.skip -= skipped;
        if input.is_empty() {
            return match (last, self.frame.is_some() || self.skip > 0) {
                (true, true) => Err(damaged("it ends too early")),
                _ => Ok(false),
            };
        }
        match &self.frame {
            None => self.begin_frame(input, last),
            Some(frame) => {
                let Some(need) = block_length(input, frame.checksum).filter(|need| *need <= input.len())
                else {
                    return if last {
                        Err(damaged("it ends too early"))
                    } else {
                        Ok(false)
                    };
                };
                let finished = self
                    .decoder
                    .decode_blocks(&input[..need], BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(damaged)?;
                input.drain(..need);
                self.decoder.collect_to_writer(&mut *out).map_err(damaged)?;
                if finished {
                    if frame.checksum
                        && self.decoder.get_checksum_from_data() != self.decoder.get_calculated_checksum()
                    {
                        return Err(damaged("its checksum does not fit"));
                    }
                    self.frame = None;
                }
                Ok(true)
            }
        }
    }

    fn begin_frame(&mut self, input: &mut Vec<u8>, last: bool) -> Result<bool, InflateError> {
        if input.len() < ZSTD_HEADER && !last {
            return Ok(false);
        }
        if is_skippable(input) {
            let length = input.get(4..8).and_then(|bytes| bytes.try_into().ok());
            let length = length
                .map(u32::from_le_bytes)
                .ok_or_else(|| damaged("it ends too early"))?;
            input.drain(..8);
            self.skip = length as usize;
            return Ok(true);
        }
        let checksum = input.get(4).is_some_and(|descriptor| descriptor & 4 != 0);
        self.decoder.set_max_window_size(ZSTD_WINDOW);
        let mut rest = input.as_slice();
        self.decoder.reset(&mut rest).map_err(|error| {
            InflateError(format!(
                "The packed file cannot be read: {error}. Pack it without --long or --ultra."
            ))
        })?;
        let read = input.len() - rest.len();
        input.drain(..read);
        self.frame = Some(Frame { checksum });
        Ok(true)
    }
}

/// How many bytes the block at the beginning takes with its header and, if it is the frame's last, the checksum.
fn block_length(input: &[u8], checksum: bool) -> Option<usize> {
    let [a, b, c, ..] = *input else { return None };
    let header = u32::from_le_bytes([a, b, c, 0]);
    let content = if (header >> 1) & 3 == 1 {
        1 // one byte, repeated
    } else {
        (header >> 3) as usize
    };
    let tail = if header & 1 == 1 && checksum { 4 } else { 0 };
    Some(3 + content + tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(packed: &[u8], piece: usize) -> Result<Vec<u8>, InflateError> {
        let mut inflate = Inflate::default();
        let mut out = Vec::new();
        for mut input in packed.chunks(piece) {
            while inflate.push(&mut input, false, &mut out)? {}
        }
        while inflate.push(&mut [].as_slice(), true, &mut out)? {}
        Ok(out)
    }

    fn sample() -> Vec<u8> {
        (0..40_000)
            .flat_map(|n: u32| format!("CODE-{}\n", n.wrapping_mul(2_654_435_761)).into_bytes())
            .collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn a_packed_stream_unpacks_the_same_however_it_is_cut() {
        let plain = sample();
        let mut two_frames = zstd(&plain[..1000]);
        two_frames.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9]);
        two_frames.extend(zstd(&plain[1000..]));
        let mut two_members = gzip(&plain[..1000]);
        two_members.extend(gzip(&plain[1000..]));
        for packed in [gzip(&plain), zstd(&plain), two_frames, two_members, plain.clone()] {
            for piece in [1, 2, 3, 7, 1000, 1 << 20] {
                assert!(unpack(&packed, piece).unwrap() == plain, "pieces of {piece}");
            }
        }
        assert_eq!(unpack(b"ab", 1).unwrap(), b"ab");
        assert_eq!(unpack(b"", 1).unwrap(), b"");
    }

    #[test]
    fn a_packed_stream_that_was_cut_is_an_error() {
        let plain = sample();
        for packed in [gzip(&plain), zstd(&plain)] {
            for end in [5, packed.len() / 2, packed.len() - 1] {
                assert!(unpack(&packed[..end], 777).is_err());
            }
        }
    }

    #[test]
    fn one_call_gives_a_bounded_amount() {
        for packed in [gzip(&vec![b'x'; 60 << 20]), zstd(&vec![b'x'; 60 << 20])] {
            let mut inflate = Inflate::default();
            let (mut input, mut total) = (packed.as_slice(), 0);
            loop {
                let mut out = Vec::new();
                let more = inflate.push(&mut input, true, &mut out).unwrap();
                assert!(out.len() <= MOST_AT_ONCE, "{}", out.len());
                total += out.len();
                if !more {
                    break;
                }
            }
            assert_eq!(total, 60 << 20);
        }
    }
}
