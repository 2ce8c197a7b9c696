/**
 * The head of a CSV file as the service will read it: what packs it, its encoding, what stands between its fields,
 * whether the first record names the columns, and which of them holds the codes. The service decides by the same rules;
 * what is shown here is also what is sent along, so both always agree.
 */
export type Encoding = 'utf-8' | 'windows-1252' | 'utf-16le' | 'utf-16be'
export type Delimiter = 'comma' | 'semicolon' | 'tab' | 'pipe'

export const DELIMITERS: Record<Delimiter, string> = { comma: ',', semicolon: ';', tab: '\t', pipe: '|' }
export const ENCODINGS: Encoding[] = ['utf-8', 'windows-1252', 'utf-16le', 'utf-16be']

/** Names of the column of codes, likelier first. */
const CODE_NAMES = ['code', 'voucher', 'coupon', 'codigo', 'código', 'código']
/** Other columns that the service understands. */
export const KNOWN_COLUMNS = ['user_email', 'expires_at', 'max_redemptions', 'metadata']

const HEAD_BYTES = 64 << 10
const SAMPLE_RECORDS = 50

export interface Dialect {
  encoding: Encoding
  delimiter: Delimiter
  hasHeader: boolean
  /** From 0; null when it has to be chosen. */
  column: number | null
}

export interface Head {
  packed: 'gzip' | 'zstd' | null
  bytes: Uint8Array
  /** Whether this is the whole file. */
  whole: boolean
}

/** Reads the head of a file, unpacked if the browser can. */
export async function readHead(file: Blob): Promise<Head> {
  const start = new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer())
  if (start[0] === 0x1f && start[1] === 0x8b) return { packed: 'gzip', ...(await gunzip(file)) }
  if (start[0] === 0x28 && start[1] === 0xb5 && start[2] === 0x2f && start[3] === 0xfd) return { packed: 'zstd', bytes: new Uint8Array(), whole: false }
  return { packed: null, bytes: start, whole: file.size <= HEAD_BYTES }
}

async function gunzip(file: Blob): Promise<{ bytes: Uint8Array; whole: boolean }> {
  const reader = file.stream().pipeThrough(new DecompressionStream('gzip') as ReadableWritablePair<Uint8Array, Uint8Array>).getReader()
  const parts: Uint8Array[] = []
  let size = 0
  try {
    while (size < HEAD_BYTES) {
      const { done, value } = await reader.read()
      if (done) return { bytes: join(parts, size), whole: true }
      parts.push(value)
      size += value.length
    }
  } catch {
    // damaged, or more than one stream: what came before is shown, the service says the rest
  }
  void reader.cancel().catch(() => {})
  return { bytes: join(parts, size).slice(0, HEAD_BYTES), whole: false }
}

function join(parts: Uint8Array[], size: number): Uint8Array {
  const all = new Uint8Array(size)
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.length
  }
  return all
}

function guessEncoding({ bytes, whole }: Pick<Head, 'bytes' | 'whole'>): Encoding {
  if (bytes[0] === 0xff && bytes[1] === 0xfe) return 'utf-16le'
  if (bytes[0] === 0xfe && bytes[1] === 0xff) return 'utf-16be'
  // Without a mark, ASCII in UTF-16 has a zero in every second place.
  const zeros = (from: number) => { let n = 0; for (let i = from; i < Math.min(bytes.length, 400); i += 2) if (bytes[i] === 0) n++; return n }
  if (bytes.length >= 4 && zeros(1) > Math.min(bytes.length, 400) / 4) return 'utf-16le'
  if (bytes.length >= 4 && zeros(0) > Math.min(bytes.length, 400) / 4) return 'utf-16be'
  try {
    new TextDecoder('utf-8', { fatal: true }).decode(bytes, { stream: !whole })
    return 'utf-8'
  } catch {
    return 'windows-1252'
  }
}

export function decode(bytes: Uint8Array, encoding: Encoding): string {
  return new TextDecoder(encoding).decode(bytes)
}

/** The first records of a text (RFC 4180); the last is left out where the text was cut. */
export function records(text: string, delimiter: string, most: number, whole: boolean): string[][] {
  const all: string[][] = []
  let record: string[] = []
  let field = ''
  let quoted = false
  let at = /^\s*"?sep=[,;\t|]"?\s*\r?\n/i.exec(text)?.[0].length ?? 0
  const end = () => {
    record.push(field)
    if (record.length > 1 || record[0]!.trim() !== '') all.push(record)
    record = []
    field = ''
  }
  for (; at < text.length && all.length < most; at++) {
    const c = text[at]!
    if (quoted) {
      if (c !== '"') field += c
      else if (text[at + 1] === '"') { field += '"'; at++ } else quoted = false
    } else if (c === '"' && field === '') quoted = true
    else if (c === delimiter) { record.push(field); field = '' }
    else if (c === '\n') end()
    else if (c === '\r') { if (text[at + 1] !== '\n') end() }
    else field += c
  }
  if (whole && all.length < most && (field !== '' || record.length)) end()
  return all
}

const fold = (name: string) => name.trim().replace(/^["'﻿]+|["']+$/g, '').trim().toLowerCase()
const codeColumn = (header: string[]) => {
  for (const name of CODE_NAMES) {
    const found = header.findIndex((column) => fold(column) === name)
    if (found >= 0) return found
  }
  return null
}

function guessDelimiter(text: string, whole: boolean): Delimiter {
  const told = /^\s*"?sep=([,;\t|])/i.exec(text)?.[1]
  const names = Object.keys(DELIMITERS) as Delimiter[]
  if (told) return names.find((name) => DELIMITERS[name] === told) ?? 'comma'
  const samples = names.map((name) => ({ name, rows: records(text, DELIMITERS[name], SAMPLE_RECORDS, whole) }))
  const widest = (some: typeof samples) => some.reduce<(typeof samples)[number] | null>((best, next) => ((next.rows[0]?.length ?? 0) > (best?.rows[0]?.length ?? 0) ? next : best), null)
  const named = widest(samples.filter(({ rows }) => rows[0] && codeColumn(rows[0]) !== null))
  const even = widest(samples.filter(({ rows }) => rows[0] && rows[0].length > 1 && rows.every((row) => row.length === rows[0]!.length)))
  return (named ?? even ?? samples[0]!).name
}

/** What is in the first record: names, or a code already. */
export function guessColumns(first: string[] | undefined): Pick<Dialect, 'hasHeader' | 'column'> {
  if (!first) return { hasHeader: false, column: null }
  const column = codeColumn(first)
  if (column !== null) return { hasHeader: true, column }
  const hasHeader = first.some((name) => KNOWN_COLUMNS.includes(fold(name)))
  return { hasHeader, column: first.length === 1 ? 0 : null }
}

export function guess(head: Head): Dialect {
  const encoding = guessEncoding(head)
  const text = decode(head.bytes, encoding)
  const delimiter = guessDelimiter(text, head.whole)
  return { encoding, delimiter, ...guessColumns(records(text, DELIMITERS[delimiter], 1, head.whole || text.includes('\n'))[0]) }
}

/** The query of the import's request. */
export function toQuery(dialect: Dialect, header: string[]): Record<string, string> {
  const query: Record<string, string> = { encoding: dialect.encoding, delimiter: dialect.delimiter, has_header: String(dialect.hasHeader) }
  if (dialect.column !== null) {
    const name = header[dialect.column]?.trim()
    const isUnique = name && header.filter((other) => fold(other) === fold(name)).length === 1
    query.column = dialect.hasHeader && isUnique && !/^\d+$/.test(name) ? name : String(dialect.column + 1)
  }
  return query
}
