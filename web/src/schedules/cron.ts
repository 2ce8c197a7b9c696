/** Cron lines of five fields and the words for the usual ones. What has no words stays a cron line. */
export type Rhythm =
  | { every: 'hour'; minute: number }
  | { every: 'day'; hour: number; minute: number }
  | { every: 'weekday'; hour: number; minute: number }
  | { every: 'week'; day: number; hour: number; minute: number }
  | { every: 'month'; date: number; hour: number; minute: number }

const NUMBER = /^\d{1,2}$/

export function toCron(rhythm: Rhythm): string {
  switch (rhythm.every) {
    case 'hour': return `${rhythm.minute} * * * *`
    case 'day': return `${rhythm.minute} ${rhythm.hour} * * *`
    case 'weekday': return `${rhythm.minute} ${rhythm.hour} * * 1-5`
    case 'week': return `${rhythm.minute} ${rhythm.hour} * * ${rhythm.day}`
    case 'month': return `${rhythm.minute} ${rhythm.hour} ${rhythm.date} * *`
  }
}

export function fromCron(line: string): Rhythm | null {
  const [m = '', h = '', date = '', month = '', weekday = '', ...rest] = line.trim().split(/\s+/)
  if (rest.length || month !== '*' || !NUMBER.test(m) || Number(m) > 59) return null
  const minute = Number(m)
  if (h === '*' && date === '*' && weekday === '*') return { every: 'hour', minute }
  if (!NUMBER.test(h) || Number(h) > 23) return null
  const hour = Number(h)
  if (date === '*' && weekday === '*') return { every: 'day', hour, minute }
  if (date === '*' && /^(1-5|mon-fri)$/i.test(weekday)) return { every: 'weekday', hour, minute }
  if (date === '*' && /^[0-7]$/.test(weekday)) return { every: 'week', day: Number(weekday) % 7, hour, minute }
  if (weekday === '*' && NUMBER.test(date) && Number(date) >= 1 && Number(date) <= 31) return { every: 'month', date: Number(date), hour, minute }
  return null
}

/** The minutes by which a zone is ahead of UTC at a moment. */
export function offsetAt(at: string, zone: string): number {
  const parts = Object.fromEntries(new Intl.DateTimeFormat('en', { timeZone: zone, hourCycle: 'h23', year: 'numeric', month: 'numeric', day: 'numeric', hour: 'numeric', minute: 'numeric' }).formatToParts(new Date(at)).map(({ type, value }) => [type, Number(value)]))
  const local = Date.UTC(parts.year!, parts.month! - 1, parts.day!, parts.hour!, parts.minute!)
  return Math.round((local - Date.parse(at)) / 60_000)
}

const MINUTE_MS = 60_000
const moved = (at: string, minutes: number) => new Date(Date.parse(at) + minutes * MINUTE_MS).toISOString()
/** The clock on the wall at a moment, by a clock that is so many minutes ahead of UTC. */
const wall = (at: string, offset: number) => moved(at, offset).slice(11, 16)
/** Longer than any clock is put by, shorter than from one change to the next. */
const SOON = 180

/** What the clock of a zone does to a fire: made up for behind hours that are left out, or the first of two that read the same. */
export function clockAt(at: string, zone: string): { of: 'gap'; from: string; to: string } | { of: 'twice'; time: string } | null {
  const now = offsetAt(at, zone)
  const before = offsetAt(moved(at, -1), zone)
  if (now > before) return { of: 'gap', from: wall(at, before), to: wall(at, now) }
  const back = now - offsetAt(moved(at, SOON), zone)
  return back > 0 && now - offsetAt(moved(at, back), zone) === back ? { of: 'twice', time: wall(at, now) } : null
}
