/** What can be said about a pattern before there is a book to ask the service with: how many codes it spells. */
const SIZES: Record<string, number> = { digits: 10, letters: 26, alphanumeric: 36, unambiguous: 30 }

/** `#` a digit, `?` a letter, `*` one of the alphabet, `\` makes the next a literal. Null when it spells nothing new. */
export function space(pattern: string, alphabet = 'alphanumeric'): number | null {
  let size = 1
  for (let at = 0; at < pattern.length; at++) {
    const c = pattern[at]
    if (c === '\\') at++
    else if (c === '#') size *= 10
    else if (c === '?') size *= 26
    else if (c === '*') size *= SIZES[alphabet] ?? 36
  }
  return size > 1 ? size : null
}

/** `1 in 4,000,000` for a share of hits. */
export function odds(share: number): string {
  if (!(share > 0)) return '0'
  if (share >= 0.5) return `${Math.round(share * 100)} %`
  return `1 in ${new Intl.NumberFormat('en', { maximumSignificantDigits: 3 }).format(1 / share)}`
}
