//! Turning bytes into UTF-8 as they come in: by byte order mark, else UTF-8, UTF-16 or Windows-1252 by what they are.
//!
//! Invariant: as long as everything is ASCII nothing needs to be decided, since UTF-8 and Windows-1252 agree on it; so
//! the decision waits for the first byte that is not, however late, and is taken on the [`LOOK_AHEAD`] that follows.

use encoding_rs::{CoderResult, Decoder, Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};

/// Bytes looked at, from the first one that is not ASCII, to tell UTF-8 from Windows-1252.
const LOOK_AHEAD: usize = 64 << 10;

/// Bytes that tell UTF-16 without a mark, and every mark.
const HEAD: usize = 4;

/// A stream being decoded.
pub struct Decode {
    state: State,
    pending: Vec<u8>,
}

enum State {
    /// The first bytes, which may be a byte order mark.
    Head,
    /// Nothing but ASCII so far.
    Ascii,
    /// Decided.
    Decoding(Box<Decoder>),
}

impl Decode {
    /// Decodes what is found out; or what `encoding` names, unless a byte order mark says otherwise.
    /// `None` when `encoding` is no label of the WHATWG Encoding standard.
    pub fn new(encoding: Option<&str>) -> Option<Self> {
        let state = match encoding {
            None => State::Head,
            Some(label) => {
                let encoding = Encoding::for_label(label.trim().as_bytes())?;
                State::Decoding(Box::new(encoding.new_decoder()))
            }
        };
        Some(Self {
            state,
            pending: Vec::new(),
        })
    }

    /// Appends the text of `bytes`. What cannot be decoded becomes U+FFFD, which no code may hold, so its line is
    /// reported. `last` says that nothing follows.
    pub fn push(&mut self, bytes: &[u8], last: bool, text: &mut Vec<u8>) {
        if let State::Decoding(decoder) = &mut self.state {
            return decode(decoder, bytes, last, text);
        }
        self.pending.extend_from_slice(bytes);
        if matches!(self.state, State::Head) {
            if self.pending.len() < HEAD && !last {
                return;
            }
            self.state = match by_head(&self.pending) {
                Some(encoding) => State::Decoding(Box::new(encoding.new_decoder_with_bom_removal())),
                None => State::Ascii,
            };
        }
        if matches!(self.state, State::Ascii) {
            let ascii = Encoding::ascii_valid_up_to(&self.pending);
            text.extend_from_slice(&self.pending[..ascii]);
            self.pending.drain(..ascii);
            if self.pending.is_empty() || (self.pending.len() < LOOK_AHEAD && !last) {
                return;
            }
            let encoding = if looks_like_utf8(&self.pending) {
                UTF_8
            } else {
                WINDOWS_1252
            };
            self.state = State::Decoding(Box::new(encoding.new_decoder_without_bom_handling()));
        }
        if let State::Decoding(decoder) = &mut self.state {
            decode(decoder, &std::mem::take(&mut self.pending), last, text);
        }
    }
}

fn by_head(head: &[u8]) -> Option<&'static Encoding> {
    if let Some((encoding, _)) = Encoding::for_bom(head) {
        return Some(encoding);
    }
    // Text of a CSV begins with ASCII, which has a zero byte in each pair of UTF-16.
    match head {
        [a, 0, b, 0, ..] if *a != 0 && *b != 0 => Some(UTF_16LE),
        [0, a, 0, b, ..] if *a != 0 && *b != 0 => Some(UTF_16BE),
        _ => None,
    }
}

/// Whether more of what is not ASCII is valid UTF-8 than is not. Windows-1252 hardly ever is by chance, and one damaged
/// byte in a UTF-8 file must not garble all of it.
fn looks_like_utf8(bytes: &[u8]) -> bool {
    let (mut valid, mut invalid) = (0usize, 0usize);
    for chunk in bytes.utf8_chunks() {
        valid += chunk.valid().chars().filter(|c| !c.is_ascii()).count();
        invalid += usize::from(!chunk.invalid().is_empty());
    }
    // A character cut by the end of the look-ahead counts for nothing.
    if std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none()) {
        invalid = invalid.saturating_sub(1);
    }
    valid > invalid || (valid == invalid && invalid == 0)
}

fn decode(decoder: &mut Decoder, mut bytes: &[u8], last: bool, text: &mut Vec<u8>) {
    loop {
        let room = decoder
            .max_utf8_buffer_length(bytes.len())
            .unwrap_or(bytes.len() * 3 + 16);
        let begin = text.len();
        text.resize(begin + room, 0);
        let (result, read, written, _) = decoder.decode_to_utf8(bytes, &mut text[begin..], last);
        text.truncate(begin + written);
        bytes = &bytes[read..];
        if result == CoderResult::InputEmpty {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8], encoding: Option<&str>, piece: usize) -> String {
        let mut decode = Decode::new(encoding).unwrap();
        let mut text = Vec::new();
        for bytes in bytes.chunks(piece) {
            decode.push(bytes, false, &mut text);
        }
        decode.push(&[], true, &mut text);
        String::from_utf8(text).unwrap()
    }

    fn utf16(text: &str, big: bool) -> Vec<u8> {
        text.encode_utf16()
            .flat_map(|unit| {
                if big {
                    unit.to_be_bytes()
                } else {
                    unit.to_le_bytes()
                }
            })
            .collect()
    }

    #[test]
    fn every_usual_encoding_is_told_however_the_stream_is_cut() {
        let shown = "código;nombre\nA1;Peña €\n";
        let mut le = vec![0xff, 0xfe];
        le.extend(utf16(shown, false));
        let mut be = vec![0xfe, 0xff];
        be.extend(utf16(shown, true));
        let mut marked = b"\xef\xbb\xbf".to_vec();
        marked.extend(shown.as_bytes());
        let (windows, ..) = WINDOWS_1252.encode(shown);
        let samples = [
            le,
            be,
            marked,
            windows.into_owned(),
            shown.as_bytes().to_vec(),
            utf16(shown, false),
            utf16(shown, true),
        ];
        for (n, bytes) in samples.iter().enumerate() {
            for piece in [1, 2, 3, 5, 1000] {
                assert_eq!(text(bytes, None, piece), shown, "sample {n}, pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_first_accent_far_down_still_decides_rightly() {
        let head = "A1\n".repeat(100_000);
        for (tail, want) in [
            (b"caf\xe9\n".as_slice(), "café\n"),
            ("café\n".as_bytes(), "café\n"),
        ] {
            let mut bytes = head.clone().into_bytes();
            bytes.extend(tail);
            assert!(text(&bytes, None, 4096) == format!("{head}{want}"));
        }
    }

    #[test]
    fn a_named_encoding_is_obeyed_and_damage_shows() {
        assert_eq!(text(b"\xe9", Some("windows-1252"), 1), "é");
        assert_eq!(text(&utf16("A,B", false), Some("utf-16le"), 1), "A,B");
        assert_eq!(text("é é é\n\u{fffd}".as_bytes(), None, 3), "é é é\n\u{fffd}");
        assert_eq!(text(b"\xc3\xa9 \xc3\xa9 \xff", None, 3), "é é \u{fffd}");
        assert!(Decode::new(Some("klingon")).is_none());
        assert_eq!(text(b"", None, 1), "");
        assert_eq!(text(b"A", None, 1), "A");
    }
}
