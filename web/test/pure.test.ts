import { describe, expect, test } from 'vitest'
import { asProblem, Problem, problemOf } from '@/api/problem'
import { changes } from '@/audit/changes'
import { emptyForm, fromBook, fromLocal, toBody, toChange, toLocal } from '@/books/form'
import { emptyDistribution, toWanted } from '@/distributions/form'
import { odds, samples, space } from '@/generating/advice'
import { parseFilter, writeFilter } from '@/jobs/filter'
import { clockAt, fromCron, offsetAt, toCron } from '@/schedules/cron'
import { canGoOn, stateOf } from '@/schedules/state'
import { axisTime, bytes, clockface, compact, duration, elapsed, grouped, percent, relative } from '@/ui/format'

describe('numbers and times', () => {
  test('as people read them', () => {
    expect([compact(58_123), compact(1_250_000)]).toEqual(['58.1k', '1.25M'])
    expect(compact(5.31e17)).toBe('5.3 × 10¹⁷')
    expect([duration(9.6), duration(125), duration(3_900)]).toEqual(['10 s', '2 min', '1 h 5 min'])
    expect([elapsed(0.0281), elapsed(4.4)]).toEqual(['28 ms', '4 s'])
    expect([clockface(247), clockface(0), clockface(3_661)]).toEqual(['4:07', '0:00', '1:01:01'])
    expect([bytes(999), bytes(1_500), bytes(25_000_000)]).toEqual(['999 B', '1.5 kB', '25 MB'])
    expect([percent(1, 1_000), percent(1, 2), percent(0, 0)]).toEqual(['<\u00a01\u00a0%', '50\u00a0%', '0\u00a0%'])
  })
  test('relative to the clock that is given, not to the browser’s', () => {
    const now = Date.parse('2030-01-01T12:00:00Z')
    expect(relative('2030-01-01T11:57:00Z', now)).toBe('3 min. ago')
    expect(relative('2030-01-03T12:00:00Z', now)).toBe('in 2 days')
    expect(relative('2029-12-31T06:00:00Z', now)).toBe('1 day ago')
    expect(relative('2030-01-01T12:00:01Z', now)).toBe('now')
  })
  test('marks under a chart are days, and hours on the clock of twenty-four', () => {
    const noon = Date.parse('2026-11-22T12:10:00Z') / 1_000
    expect(axisTime(noon, 86_400)).toMatch(/^Nov 2[23]$/)
    expect(axisTime(noon, 3_600)).toMatch(/^\d\d:\d\d$/)
  })
  test('a code in groups is the same code', () => {
    for (const code of ['SPRING-00042', 'ABCDEFGHJKLM', 'ABCDEFGHJ', 'AB', 'A1B2C3D']) expect(grouped(code).join('')).toBe(code)
    expect(grouped('ABCDEFGHJKLM')).toEqual(['ABCD', 'EFGH', 'JKLM'])
    expect(grouped('COFFEE360XK4P')).toEqual(['COFF', 'EE3', '60X', 'K4P'])
  })
})

describe('a wall clock in a zone', () => {
  test.each([['2026-07-01T09:30', 'Europe/Paris', '2026-07-01T07:30:00.000Z'], ['2026-12-01T09:30', 'America/New_York', '2026-12-01T14:30:00.000Z'], ['2026-12-01T09:30', 'Asia/Kathmandu', '2026-12-01T03:45:00.000Z']])('%s in %s', (local, zone, at) => {
    expect(fromLocal(local, zone)).toBe(at)
    expect(toLocal(at, zone)).toBe(local)
  })
  test('the offset shows where clocks change', () => expect([offsetAt('2026-03-28T12:00:00Z', 'Europe/Paris'), offsetAt('2026-03-30T12:00:00Z', 'Europe/Paris')]).toEqual([60, 120]))
  test.each([
    ['2027-03-28T01:00:00Z', 'Europe/Berlin', { of: 'gap', from: '02:00', to: '03:00' }], // for 02:30, which is not there
    ['2027-03-28T01:30:00Z', 'Europe/Berlin', null],
    ['2027-10-31T00:30:00Z', 'Europe/Berlin', { of: 'twice', time: '02:30' }],
    ['2027-10-31T01:30:00Z', 'Europe/Berlin', null], // the second
    ['2027-10-30T23:30:00Z', 'Europe/Berlin', null],
    ['2027-10-02T15:30:00Z', 'Australia/Lord_Howe', { of: 'gap', from: '02:00', to: '02:30' }], // half an hour
    ['2027-04-03T14:45:00Z', 'Australia/Lord_Howe', { of: 'twice', time: '01:45' }],
    ['2027-03-28T01:00:00Z', 'UTC', null],
  ])('%s in %s: what the clock does', (at, zone, said) => expect(clockAt(at, zone)).toEqual(said))
})

test('an event tells by name whom it is about', () => {
  const id = '019a0000-0000-7000-8000-000000000001'
  expect(changes({ state: 'unassigned' }, { state: 'assigned', user_id: id })).toEqual([{ name: 'state', before: 'unassigned', after: 'assigned' }, { name: 'user', of: 'user', id, before: null, after: '019a0000…' }])
})

test('an emptied field of a book is cleared by name, and nothing else is', () => {
  const book = { ...toBody(emptyForm()), max_assignments_per_user: 5, max_redemptions_per_user: null, starts_at: null, ends_at: '2027-01-01T00:00:00Z', valid_days_after_assignment: null, exact_codes: false, time_zone: 'UTC', name: 'Spring' } as never
  const form = fromBook(book)
  expect(toChange(form, book)).not.toHaveProperty('clear')
  form.max_assignments_per_user = ''
  form.ends_at = ''
  expect(toChange(form, book)).toMatchObject({ clear: ['max_assignments_per_user', 'ends_at'] })
  expect(toChange(form, book)).not.toHaveProperty('exact_codes')
})

test('the filter of jobs is what its text says, and back', () => {
  expect(parseFilter('state:failed kind:import nonsense state:odd')).toEqual({ filter: { state: 'failed', kind: 'import' }, unknown: ['nonsense', 'state:odd'] })
  expect(writeFilter(parseFilter('kind:import state:failed').filter)).toBe('state:failed kind:import')
})

test('a schedule without a next time is over, and goes on if its times have not all passed', () => {
  const next_fire_at = '2030-01-01T00:00:00Z'
  expect([{ paused: false, next_fire_at }, { paused: true, next_fire_at: null }, { paused: false, next_fire_at: null }].map(stateOf)).toEqual(['active', 'paused', 'over'])
  expect([{ cron: '0 9 * * 1', ends_at: null }, { cron: '0 9 * * 1', ends_at: '2020-01-01T00:00:00Z' }, { cron: null, ends_at: null }].map(canGoOn)).toEqual([true, false, false])
})

test('cron lines that have words, and those that have none', () => {
  for (const line of ['5 * * * *', '30 9 * * *', '0 9 * * 1-5', '0 9 * * 1', '15 8 31 * *']) expect(toCron(fromCron(line)!)).toBe(line)
  for (const line of ['*/5 * * * *', '0 9 1 1 *', '0 9 * * 1,3', '61 9 * * *', '']) expect(fromCron(line)).toBeNull()
})

test('how much a pattern spells', () => {
  expect([space('SALE-####'), space('\\#??'), space('**', 'digits'), space('PLAIN')]).toEqual([10_000, 676, 100, null])
  for (const code of samples('CB-##\\#?*', 'digits')) expect(code).toMatch(/^CB-\d\d#[A-Z]\d$/)
  expect([odds(1 / 4_000_000), odds(1)]).toEqual(['1 in 4,000,000', '100 %'])
})

test('a distribution is asked for only when it is whole', () => {
  const form = { ...emptyDistribution(), book_id: 'b', pool_id: null as string | null }
  expect(toWanted(form)).toBeNull()
  form.pool_id = 'p'
  expect(toWanted(form)).toEqual({ book_id: 'b', pool_id: 'p', mode: 'equal', on_shortage: 'fail', per_user: 1 })
  expect(toWanted({ ...form, mode: 'random', total: 10 })).not.toHaveProperty('per_user')
})

test('an event shows what differs and hides what nobody reads', () => {
  expect(changes({ state: 'assigned', draw_key: 1, same: 1 }, { state: 'locked', draw_key: 2, same: 1 })).toEqual([{ name: 'state', before: 'assigned', after: 'locked' }])
  expect(changes(null, { name: 'Spring' })).toEqual([{ name: 'name', before: null, after: 'Spring' }])
})

describe('problems', () => {
  test('an answer of the service', async () => {
    const answer = new Response(JSON.stringify({ code: 'coupon_locked', detail: 'Held.', request_id: 'r1', errors: [{ pointer: '/name', code: 'x', detail: 'No.' }] }), { status: 423, headers: { 'retry-after': '7' } })
    const problem = await problemOf(answer)
    expect(problem).toMatchObject({ code: 'coupon_locked', status: 423, requestId: 'r1', retryAfter: 7 })
    expect(problem.fault('name')).toBe('No.')
  })
  test('a page of somebody in between', async () => expect((await problemOf(new Response('<html>', { status: 502 }))).isPassing).toBe(true))
  test('no answer at all', () => expect(asProblem(new TypeError('fetch failed')).code).toBe('unreachable'))
  test('what was a problem stays it', () => { const problem = new Problem({ code: 'stale' }, 412); expect(asProblem(problem)).toBe(problem) })
})
