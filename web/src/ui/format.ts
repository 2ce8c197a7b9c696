/** Numbers and times as people read them, in the language of the page. */
import { serverNow } from '@/api/clock'

const language = 'en'
const whole = new Intl.NumberFormat(language)
const short = new Intl.NumberFormat(language, { notation: 'compact', maximumSignificantDigits: 3 })
/** “1 day ago” and not “yesterday”: thirty hours ago may be the day before that. */
const ago = new Intl.RelativeTimeFormat(language, { style: 'short' })
const now = new Intl.RelativeTimeFormat(language, { numeric: 'auto' }).format(0, 'second')

export const number = (value: number): string => whole.format(value)

/** `58k`, for rates and axes, where the digits behind do not matter. */
export const compact = (value: number): string => {
  if (value >= 1e15) {
    const power = Math.floor(Math.log10(value))
    return `${(value / 10 ** power).toFixed(1)} × 10${[...String(power)].map((digit) => '⁰¹²³⁴⁵⁶⁷⁸⁹'[Number(digit)]).join('')}`
  }
  return short.format(value).toLowerCase().replace('m', 'M').replace('b', 'B')
}

const UNITS: [Intl.RelativeTimeFormatUnit, number][] = [
  ['year', 31_557_600], ['month', 2_629_800], ['week', 604_800], ['day', 86_400], ['hour', 3_600], ['minute', 60], ['second', 1],
]

/** `3 min. ago`, `in 2 days`, by the service's clock. */
export function relative(at: string, since: number = serverNow()): string {
  const seconds = Math.round((Date.parse(at) - since) / 1_000)
  if (Math.abs(seconds) < 3) return now
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? UNITS[UNITS.length - 1]!
  return ago.format(Math.trunc(seconds / size), unit)
}

/** A time to the second with its zone: the reader's unless another is asked for. */
export function absolute(at: string, zone?: string): string {
  return new Intl.DateTimeFormat(language, {
    year: 'numeric', month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23', timeZoneName: 'short', timeZone: zone,
  }).format(new Date(at))
}

/** A time to the minute with its day of the week and its zone, for plans. */
export function moment(at: string, zone?: string): string {
  return new Intl.DateTimeFormat(language, {
    weekday: 'short', year: 'numeric', month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', hourCycle: 'h23', timeZoneName: 'short', timeZone: zone,
  }).format(new Date(at))
}

/** A mark under a chart, seconds after 1970 and so many from the next: days, and between them hours. */
export function axisTime(seconds: number, step: number): string {
  const at = new Date(seconds * 1_000)
  const isDay = step >= 86_400 || (at.getHours() === 0 && at.getMinutes() === 0)
  return new Intl.DateTimeFormat(language, isDay ? { month: 'short', day: 'numeric' } : { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' }).format(at)
}

/** The time of day of the reader. */
export const timeOfDay = (at: string | number): string => new Intl.DateTimeFormat(language, { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' }).format(new Date(at))

/** A day, or a day and a time, for sentences. */
export function day(at: string, zone?: string): string {
  return new Intl.DateTimeFormat(language, { year: 'numeric', month: 'short', day: 'numeric', timeZone: zone }).format(new Date(at))
}

/** `about 10 s`, `2 min`, `1 h 5 min`. */
export function duration(seconds: number): string {
  const total = Math.max(0, Math.round(seconds))
  if (total < 60) return `${total} s`
  const minutes = Math.round(total / 60)
  if (minutes < 60) return `${minutes} min`
  const hours = Math.floor(minutes / 60)
  return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`
}

/** How long something took: `28 ms`, `4 s`, `2 min`. */
export const elapsed = (seconds: number): string => (seconds < 1 ? `${Math.round(seconds * 1_000)} ms` : duration(seconds))

/** `4:07`, for countdowns. */
export function clockface(seconds: number): string {
  const total = Math.max(0, Math.ceil(seconds))
  const hours = Math.floor(total / 3_600)
  const rest = `${String(Math.floor((total % 3_600) / 60)).padStart(hours ? 2 : 1, '0')}:${String(total % 60).padStart(2, '0')}`
  return hours ? `${hours}:${rest}` : rest
}

export function bytes(count: number): string {
  if (count < 1_000) return `${count} B`
  const units = ['kB', 'MB', 'GB']
  let value = count / 1_000
  let unit = 0
  while (value >= 1_000 && unit < units.length - 1) {
    value /= 1_000
    unit++
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`
}

export function percent(part: number, whole: number): string {
  if (whole <= 0) return '0\u00a0%'
  const share = (part / whole) * 100
  return share > 0 && share < 1 ? '<\u00a01\u00a0%' : `${Math.round(share)}\u00a0%`
}

/** A code in groups that the eye can hold; one that has its own dashes or spaces keeps them. */
export function grouped(code: string): string[] {
  if (/[\s-]/.test(code)) return code.split(/(?<=[\s-])/)
  if (code.length <= 6) return [code]
  const letters = [...code]
  const groups: string[] = []
  // As even as can be, so that no letter stands alone at the end.
  for (let left = Math.ceil(letters.length / 4); left > 0; left--) groups.push(letters.splice(0, Math.ceil(letters.length / left)).join(''))
  return groups
}
