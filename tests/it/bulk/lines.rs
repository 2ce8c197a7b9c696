//! A file of any length with bad lines of every kind, written line by line, each with what is to be said of it.
//!
//! Invariant: what a line is follows from the seed and its number alone, so nothing is remembered but a count.

/// The head of the file.
pub(super) const HEADER: &str = "code,user_email,expires_at,max_redemptions,metadata\n";

/// Codes that the book has before: `OLD-0` and so on.
pub(super) const OLD: u64 = 100;

/// The most coupons of the book that somebody may hold.
pub(super) const MAX_HELD: i64 = 3;

/// Who may hold coupons.
pub(super) const HOLDER: &str = "ann@example.com";

/// Whose account is disabled.
pub(super) const DISABLED: &str = "off@example.com";

/// A prime above every number of lines: multiplying by anything scatters the numbers and keeps them apart.
const PRIME: u64 = 99_999_989;

/// What is in the file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    /// Records, good and bad.
    pub(super) rows: i64,
    /// Good ones.
    pub(super) accepted: i64,
    /// The sum of the numbers in the accepted codes.
    pub(super) sum: i64,
    /// Physical line and reason of each bad one.
    pub(super) errors: Vec<(i64, &'static str)>,
}

/// The lines of a file, one after another.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    seed: u64,
    count: u64,
    next: u64,
    line: i64,
    held: i64,
    expected: Expected,
}

/// One in a hundred is bad, one in two hundred good in an unusual way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Unusual(u64),
    Bad(u64),
}

/// Ways to be bad.
const BAD: u64 = 12;

impl Lines {
    pub(super) fn new(seed: u64, count: u64) -> Self {
        assert!(count < PRIME);
        Self {
            seed,
            count,
            next: 0,
            line: 2,
            held: 0,
            expected: Expected::default(),
        }
    }

    /// What was in the lines so far.
    pub(super) fn expected(self) -> Expected {
        self.expected
    }

    /// A number that looks random and is always the same for the same line.
    fn roll(&self, line: u64, turn: u64) -> u64 {
        let mut z =
            self.seed ^ line.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ turn.wrapping_mul(0xd1b5_4a32_d192_ed03);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn kind(&self, line: u64) -> Kind {
        let roll = self.roll(line, 0);
        match roll % 1_000 {
            0..10 => Kind::Bad(roll / 1_000 % BAD),
            10..15 => Kind::Unusual(roll / 1_000 % 4),
            _ => Kind::Plain,
        }
    }

    /// The number in the code of a line.
    fn number(line: u64) -> u64 {
        (line + 1) * 48_271 % PRIME
    }

    /// Appends the next line; `false` when there is none.
    pub(super) fn write(&mut self, text: &mut String) -> bool {
        let line = self.next;
        if line == self.count {
            return false;
        }
        self.next += 1;
        let begin = text.len();
        let number = Self::number(line);
        let code = format!("K-{number:08}");
        let mut reason = None;
        let mut blank = 0;
        match self.kind(line) {
            Kind::Plain => text.push_str(&format!("{code},,,,\n")),
            Kind::Unusual(0) => text.push_str(&format!("\"{code}\",,2099-01-01T00:00:00Z,3,\n")),
            Kind::Unusual(1) => text.push_str(&format!(
                " {code} , ,2099-06-30,,\"{{\"\"n\"\":\r\n{line}}}\"\r\n"
            )),
            Kind::Unusual(2) => {
                blank = 1;
                text.push_str(&format!("\n{},,,,\n", code.to_lowercase()));
            }
            Kind::Unusual(_) => text.push_str(&format!("{code}\n")),
            Kind::Bad(way) => reason = self.write_bad(way, line, &code, text),
        }
        self.expected.rows += 1;
        match reason {
            Some(reason) => self.expected.errors.push((self.line + blank, reason)),
            None => {
                self.expected.accepted += 1;
                self.expected.sum += i64::try_from(number).unwrap();
            }
        }
        self.line += text[begin..].matches('\n').count() as i64;
        true
    }

    /// A line that is bad, unless its holder may still have one more.
    fn write_bad(&mut self, way: u64, line: u64, code: &str, text: &mut String) -> Option<&'static str> {
        let (fields, reason) = match way {
            0 => ("\"\",,,,".to_owned(), "empty"),
            1 => (format!("\u{f1}{code},,,,"), "bad_character"),
            2 => (format!("{},,,,", "X".repeat(101)), "too_long"),
            3 => (
                format!("old {},,,,", self.roll(line, 1) % OLD),
                "duplicate_in_book",
            ),
            4 => match self.earlier(line) {
                Some(earlier) => (format!("k{:08},,,,", Self::number(earlier)), "duplicate_in_file"),
                None => (",,,,".to_owned(), "empty"),
            },
            5 => (format!("{code},nobody@example.com,,,"), "unknown_user"),
            6 => (format!("{code},{DISABLED},,,"), "user_disabled"),
            7 => {
                text.push_str(&format!("{code},{HOLDER},,,\n"));
                self.held += 1;
                return (self.held > MAX_HELD).then_some("assignment_limit_reached");
            }
            8 => (format!("{code},,31.12.2026,,"), "bad_date"),
            9 => (format!("{code},,,0,"), "bad_number"),
            10 => (format!("{code},,,,[1]"), "bad_metadata"),
            _ => (format!("{code},,,,,x"), "too_many_columns"),
        };
        text.push_str(&fields);
        text.push('\n');
        Some(reason)
    }

    /// An earlier line that is good whatever else is.
    fn earlier(&self, line: u64) -> Option<u64> {
        (1..20)
            .map(|turn| self.roll(line, turn) % line.max(1))
            .find(|earlier| *earlier < line && !matches!(self.kind(*earlier), Kind::Bad(_)))
    }
}
