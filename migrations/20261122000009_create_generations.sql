-- Codes made from patterns: the key of each book, how far each pattern has been used, and the jobs that make them.

CREATE TABLE code_keys (
    book_id uuid  PRIMARY KEY REFERENCES books (id),
    key     bytea NOT NULL CHECK (length(key) = 32)
);
COMMENT ON TABLE  code_keys         IS 'The secret that a book''s generated codes follow from; made when first needed, never changed, never shown.';
COMMENT ON COLUMN code_keys.book_id IS 'The book.';
COMMENT ON COLUMN code_keys.key     IS 'Secret: 256 bits from the operating system. Not the draw''s seed, which may be revealed one day.';

CREATE TABLE code_patterns (
    book_id    uuid    NOT NULL REFERENCES books (id),
    tweak      bytea   NOT NULL CHECK (length(tweak) = 32),
    next_index bigint  NOT NULL DEFAULT 0,
    made       bigint  NOT NULL DEFAULT 0,
    checked    boolean NOT NULL,
    pattern    text    NOT NULL CHECK (length(pattern) BETWEEN 1 AND 200),
    alphabet   text    CHECK (length(alphabet) BETWEEN 1 AND 200),
    PRIMARY KEY (book_id, tweak),
    CONSTRAINT code_patterns_made_is_reserved CHECK (made BETWEEN 0 AND next_index)
);
COMMENT ON TABLE  code_patterns            IS 'The patterns that a book''s codes were generated from; the n-th code of a pattern is a keyed permutation of n.';
COMMENT ON COLUMN code_patterns.book_id    IS 'The book.';
COMMENT ON COLUMN code_patterns.tweak      IS 'SHA-256 of what the pattern can spell, as far as it makes codes differ: patterns that spell the same codes share the row.';
COMMENT ON COLUMN code_patterns.next_index IS 'The first number that no job has reserved; numbers below are never used again.';
COMMENT ON COLUMN code_patterns.made       IS 'Coupons made; a number whose code was there before, or whose job was cancelled, made none.';
COMMENT ON COLUMN code_patterns.checked    IS 'Whether the codes have a check character.';
COMMENT ON COLUMN code_patterns.pattern    IS 'The pattern as it was first given.';
COMMENT ON COLUMN code_patterns.alphabet   IS 'What * stands for, a name or the symbols; null for letters and digits.';

CREATE TABLE generations (
    job_id     uuid    PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    book_id    uuid    NOT NULL,
    expires_at timestamptz,
    count      bigint  NOT NULL CHECK (count BETWEEN 1 AND 10000000),
    made       bigint  NOT NULL DEFAULT 0,
    skipped    bigint  NOT NULL DEFAULT 0 CHECK (skipped >= 0),
    wave_start bigint  NOT NULL DEFAULT 0,
    wave_end   bigint  NOT NULL DEFAULT 0,
    wave_done  bigint  NOT NULL DEFAULT 0,
    checked    boolean NOT NULL,
    tweak      bytea   NOT NULL CHECK (length(tweak) = 32),
    pattern    text    NOT NULL CHECK (length(pattern) BETWEEN 1 AND 200),
    alphabet   text    CHECK (length(alphabet) BETWEEN 1 AND 200),
    metadata   jsonb,
    CONSTRAINT generations_made_is_wanted CHECK (made BETWEEN 0 AND count),
    CONSTRAINT generations_wave CHECK (wave_start BETWEEN 0 AND wave_end AND wave_done BETWEEN 0 AND wave_end - wave_start)
);
CREATE INDEX generations_pattern ON generations (book_id, tweak);
COMMENT ON TABLE  generations            IS 'Where a job that makes codes stands; one step moves it on in one transaction with what it wrote.';
COMMENT ON COLUMN generations.job_id     IS 'The job.';
COMMENT ON COLUMN generations.book_id    IS 'The book.';
COMMENT ON COLUMN generations.expires_at IS 'When the coupons expire; null for never.';
COMMENT ON COLUMN generations.count      IS 'Coupons wanted.';
COMMENT ON COLUMN generations.made       IS 'Coupons made.';
COMMENT ON COLUMN generations.skipped    IS 'Codes that the book had before; the next number was taken for each.';
COMMENT ON COLUMN generations.wave_start IS 'The first number of the wave under way: numbers reserved together, whose codes are written in the order of their keys.';
COMMENT ON COLUMN generations.wave_end   IS 'The number behind its last.';
COMMENT ON COLUMN generations.wave_done  IS 'How many codes of the wave, in the order of their keys, have been dealt with.';
COMMENT ON COLUMN generations.checked    IS 'Whether the codes get a check character.';
COMMENT ON COLUMN generations.tweak      IS 'Names the row of code_patterns.';
COMMENT ON COLUMN generations.pattern    IS 'How the codes are spelled.';
COMMENT ON COLUMN generations.alphabet   IS 'What * stands for, a name or the symbols; null for letters and digits.';
COMMENT ON COLUMN generations.metadata   IS 'The coupons'' own fields; null for none.';
