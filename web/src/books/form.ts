/** The settings of a book as a form holds them: text where a field may be empty. */
import type { Schemas } from '@/api/client'

/** A book as administrators get it: with every member. */
export type WholeBook = Required<Schemas['Book']>

export interface BookForm {
  name: string
  description: string
  status: Schemas['BookStatus']
  redemptions_per_coupon: number
  max_assignments_per_user: number | ''
  max_redemptions_per_user: number | ''
  require_lock: boolean
  lock_seconds: number
  lock_renewals: number
  self_service: boolean
  exact_codes: boolean
  starts_at: string
  ends_at: string
  valid_days_after_assignment: number | ''
  rollback_days: number
  time_zone: string
}

export const ownZone = (): string => Intl.DateTimeFormat().resolvedOptions().timeZone || 'UTC'

export function emptyForm(): BookForm {
  return {
    name: '', description: '', status: 'active', redemptions_per_coupon: 1, max_assignments_per_user: '', max_redemptions_per_user: '', require_lock: true, lock_seconds: 300, lock_renewals: 3,
    self_service: false, exact_codes: false, starts_at: '', ends_at: '', valid_days_after_assignment: '', rollback_days: 90, time_zone: ownZone(),
  }
}

/** What `<input type="datetime-local">` shows for a time in a zone. */
export function toLocal(at: string | null | undefined, zone: string): string {
  if (!at) return ''
  const parts = Object.fromEntries(
    new Intl.DateTimeFormat('en', { timeZone: zone, year: 'numeric', month: '2-digit', day: '2-digit', hour: '2-digit', minute: '2-digit', hourCycle: 'h23' }).formatToParts(new Date(at)).map(({ type, value }) => [type, value]),
  )
  return `${parts.year}-${parts.month}-${parts.day}T${parts.hour}:${parts.minute}`
}

/** The moment that a wall clock in a zone shows; one that the clock skips is the moment just after the gap. */
export function fromLocal(local: string, zone: string): string | undefined {
  if (!local) return undefined
  const wanted = Date.parse(`${local}:00Z`)
  if (Number.isNaN(wanted)) return undefined
  let guess = wanted
  for (let n = 0; n < 3; n++) guess += wanted - Date.parse(`${toLocal(new Date(guess).toISOString(), zone)}:00Z`)
  return new Date(guess).toISOString()
}

export function fromBook(book: WholeBook): BookForm {
  return {
    ...emptyForm(), ...pick(book),
    max_assignments_per_user: book.max_assignments_per_user ?? '',
    max_redemptions_per_user: book.max_redemptions_per_user ?? '',
    valid_days_after_assignment: book.valid_days_after_assignment ?? '',
    starts_at: toLocal(book.starts_at, book.time_zone),
    ends_at: toLocal(book.ends_at, book.time_zone),
  }
}

function pick(book: WholeBook) {
  const { name, description, status, redemptions_per_coupon, require_lock, lock_seconds, lock_renewals, self_service, exact_codes, rollback_days, time_zone } = book
  return { name, description, status, redemptions_per_coupon, require_lock, lock_seconds, lock_renewals, self_service, exact_codes, rollback_days, time_zone }
}

const orNone = (value: number | '') => (value === '' ? undefined : value)

/** The body of the POST. */
export function toBody(form: BookForm): Schemas['NewBook'] {
  return {
    ...form,
    name: form.name.trim(),
    max_assignments_per_user: orNone(form.max_assignments_per_user),
    max_redemptions_per_user: orNone(form.max_redemptions_per_user),
    valid_days_after_assignment: orNone(form.valid_days_after_assignment),
    starts_at: fromLocal(form.starts_at, form.time_zone),
    ends_at: fromLocal(form.ends_at, form.time_zone),
  }
}

/** The body of the PATCH: what was emptied is named, since a null means absent. */
export function toChange(form: BookForm, before: WholeBook): Schemas['BookChange'] {
  const change: Schemas['BookChange'] = toBody(form)
  const clearable = ['max_assignments_per_user', 'max_redemptions_per_user', 'starts_at', 'ends_at', 'valid_days_after_assignment'] as const
  const clear = clearable.filter((member) => change[member] === undefined && before[member] !== null)
  if (form.exact_codes === before.exact_codes) delete change.exact_codes // fixed once there are codes
  return { ...change, ...(clear.length ? { clear } : {}) }
}
