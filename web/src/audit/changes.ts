/** What differs between the two sides of an event, in words short enough for a line. */
export interface Change {
  name: string
  /** Of whom or what it is the id, where a screen can tell by name. */
  of?: 'user' | 'distribution'
  id?: string
  before: string | null
  after: string | null
}

const LONG = 40
const HIDDEN = ['draw_key', 'epoch', 'lock_token_hash', 'low', 'high']

export function changes(before: unknown, after: unknown): Change[] {
  const left = flat(before)
  const right = flat(after)
  const names = [...new Set([...Object.keys(left), ...Object.keys(right)])].filter((name) => !HIDDEN.includes(name))
  return names
    .filter((name) => JSON.stringify(left[name]) !== JSON.stringify(right[name]))
    .map((name) => ({ ...told(name, right[name]), before: name in left ? short(left[name]) : null, after: name in right ? short(right[name]) : null }))
    .slice(0, 8)
}

const NAMED: Record<string, 'user' | 'distribution'> = { user_id: 'user', assigned_user_id: 'user', distribution_id: 'distribution' }

function told(name: string, after: unknown): Pick<Change, 'name' | 'of' | 'id'> {
  const of = NAMED[name]
  return of && typeof after === 'string' ? { name: of, of, id: after } : { name: name.replaceAll('_', ' ') }
}

const flat = (value: unknown): Record<string, unknown> => (value && typeof value === 'object' && !Array.isArray(value) ? (value as Record<string, unknown>) : value === null || value === undefined ? {} : { value })

function short(value: unknown): string {
  if (value === null || value === undefined) return '–'
  const text = typeof value === 'string' ? value : JSON.stringify(value)
  if (/^[0-9a-f]{8}-[0-9a-f-]{27}$/.test(text)) return `${text.slice(0, 8)}…`
  if (/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d/.test(text)) return `${text.slice(0, 19).replace('T', ' ')} UTC`
  return text.length > LONG ? `${text.slice(0, LONG)}…` : text
}
