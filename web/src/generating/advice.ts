/** What can be said about a pattern before there is a book to ask the service with: how many codes it spells, and how they look. */
const DIGITS = '0123456789'
const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
const ALPHABETS: Record<string, string> = { digits: DIGITS, letters: LETTERS, alphanumeric: DIGITS + LETTERS, unambiguous: '23456789ABCDEFGHJKMNPQRSTVWXYZ' }
const alphabetOf = (name: string) => ALPHABETS[name] ?? DIGITS + LETTERS

/** Drawn once, so that the samples do not flicker while one types. */
const DRAWN = crypto.getRandomValues(new Uint8Array(3 * 200))

/** `#` a digit, `?` a letter, `*` one of the alphabet, `\` makes the next a literal. Null when it spells nothing new. */
export function space(pattern: string, alphabet = 'alphanumeric'): number | null {
  let size = 1
  for (let at = 0; at < pattern.length; at++) {
    const c = pattern[at]
    if (c === '\\') at++
    else if (c === '#') size *= 10
    else if (c === '?') size *= 26
    else if (c === '*') size *= alphabetOf(alphabet).length
  }
  return size > 1 ? size : null
}

/** Codes as a pattern spells them, without the check character, which is the service's to reckon. */
export function samples(pattern: string, alphabet = 'alphanumeric', count = 3): string[] {
  const sets: Record<string, string> = { '#': DIGITS, '?': LETTERS, '*': alphabetOf(alphabet) }
  return Array.from({ length: count }, (_, n) => {
    let code = ''
    for (let at = 0; at < pattern.length; at++) {
      const c = pattern[at]!
      const set = sets[c]
      if (c === '\\') code += pattern[++at] ?? ''
      else code += set ? set[DRAWN[n * 200 + at]! % set.length] : c
    }
    return code
  })
}

/** `1 in 4,000,000` for a share of hits. */
export function odds(share: number): string {
  if (!(share > 0)) return '0'
  if (share >= 0.5) return `${Math.round(share * 100)} %`
  return `1 in ${new Intl.NumberFormat('en', { maximumSignificantDigits: 3 }).format(1 / share)}`
}
