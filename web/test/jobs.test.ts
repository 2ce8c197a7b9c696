import { afterEach, expect, test, vi } from 'vitest'
import type { Job } from '@/jobs/job'
import { endedLately } from '@/jobs/lately'
import { errorTail } from '@/jobs/latest'

afterEach(() => vi.unstubAllGlobals())

/** A job with lines that could not be done, listed oldest first as the service does. */
function listing(lines: number[]) {
  const asked: number[] = []
  vi.stubGlobal('fetch', vi.fn(async (request: Request) => {
    const query = new URL(request.url).searchParams
    const after = Number(query.get('cursor') ?? 0)
    asked.push(after)
    const page = lines.filter((line) => line > after).slice(0, Number(query.get('limit')))
    const more = lines.some((line) => line > (page.at(-1) ?? Infinity))
    return new Response(JSON.stringify({ data: page.map((line) => ({ line, reason: 'invalid', detail: '' })), next_cursor: more ? String(page.at(-1)) : null }), { headers: { 'content-type': 'application/json' } })
  }))
  return asked
}
const upTo = (count: number) => Array.from({ length: count }, (_, n) => n + 1)

test('the latest errors are the last ones, however many there are', async () => {
  const lines = upTo(230)
  listing(lines)
  const read = errorTail('job', 5)
  expect((await read()).map(({ line }) => line)).toEqual([226, 227, 228, 229, 230])
})

test('what was read is not read again, and what is new is shown once', async () => {
  const lines = upTo(101)
  const asked = listing(lines)
  const read = errorTail('job', 5)
  await read()
  lines.push(102, 103)
  expect((await read()).map(({ line }) => line)).toEqual([99, 100, 101, 102, 103])
  expect(asked).toEqual([0, 100, 100])
})

test('a list that grows faster than it is read is not read for ever', async () => {
  const asked = listing(upTo(5_000))
  const read = errorTail('job', 5)
  await read()
  expect(asked).toHaveLength(10)
  expect((await read()).at(-1)!.line).toBe(1_900)
})

test('what ended badly more than a day ago needs nobody any more', () => {
  const ended = (finished_at: string | null) => ({ finished_at }) as Job
  const jobs = ['2030-01-02T11:00:00Z', '2030-01-01T12:00:01Z', '2030-01-01T11:59:59Z', null].map(ended)
  expect(endedLately(jobs, Date.parse('2030-01-02T12:00:00Z'))).toEqual(jobs.slice(0, 2))
})
