import { describe, expect, test } from 'vitest'
import { DELIMITERS, decode, guess, readHead, records, toQuery } from '@/importing/preview'

const head = (text: string | Uint8Array) => ({ packed: null, whole: true, bytes: typeof text === 'string' ? new TextEncoder().encode(text) : text })
const utf16 = (text: string, mark = true) => {
  const units = new Uint16Array([...(mark ? '\ufeff' : ''), ...text].map((c) => c.charCodeAt(0)))
  return new Uint8Array(units.buffer)
}

describe('what a file is read as', () => {
  test.each([
    ['code\nA-1\n', { delimiter: 'comma', hasHeader: true, column: 0 }],
    ['A-1\nA-2\n', { delimiter: 'comma', hasHeader: false, column: 0 }],
    ['id;Voucher;name\n1;A;x\n', { delimiter: 'semicolon', hasHeader: true, column: 1 }],
    ['name\tcódigo\nx\tA\n', { delimiter: 'tab', hasHeader: true, column: 1 }],
    ['sep=|\nx|code\n1|A\n', { delimiter: 'pipe', hasHeader: true, column: 1 }],
    ['a,b\nc,d\n', { delimiter: 'comma', hasHeader: false, column: null }],
  ])('%j', (text, wanted) => expect(guess(head(text))).toMatchObject(wanted))

  test.each([
    ['utf-8', new TextEncoder().encode('code\né\n')],
    ['windows-1252', new Uint8Array([99, 111, 100, 101, 10, 0xe9, 10])],
    ['utf-16le', utf16('code\nA\n')],
    ['utf-16le', utf16('code\nA\n', false)],
  ])('%s', (encoding, bytes) => {
    const found = guess(head(bytes as Uint8Array))
    expect(found).toMatchObject({ encoding, hasHeader: true })
    expect(decode(bytes as Uint8Array, found.encoding)).toContain('code')
  })

  test('a character that the head cuts in half does not make it another encoding', () => {
    const bytes = new TextEncoder().encode('code\né').slice(0, -1)
    expect(guess({ packed: null, whole: false, bytes }).encoding).toBe('utf-8')
  })
})

test('quotes, doubled quotes and line breaks in fields', () => {
  expect(records('code,note\r\n"A,1","say ""hi""\nthere"\r\nB,\r\n', ',', 9, true)).toEqual([['code', 'note'], ['A,1', 'say "hi"\nthere'], ['B', '']])
})
test('a record that was cut off is not shown', () => expect(records('a\nb\nc', ',', 9, false)).toEqual([['a'], ['b']]))

test('what is shown is what is sent', () => {
  const base = { encoding: 'utf-8', delimiter: 'semicolon', column: 1 } as const
  expect(toQuery({ ...base, hasHeader: true }, ['id', 'Voucher'])).toEqual({ encoding: 'utf-8', delimiter: 'semicolon', has_header: 'true', column: 'Voucher' })
  expect(toQuery({ ...base, hasHeader: false }, ['x', 'A'])).toMatchObject({ has_header: 'false', column: '2' })
  expect(toQuery({ ...base, hasHeader: true }, ['code', 'Code']).column).toBe('2')
})

test('a packed file is known by its first bytes', async () => {
  expect((await readHead(new Blob([new Uint8Array([0x28, 0xb5, 0x2f, 0xfd, 0])]))).packed).toBe('zstd')
  expect(Object.keys(DELIMITERS)).toHaveLength(4)
})
