import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'

const session = (n: number) => ({ access_token: `a${n}`, refresh_token: `r${n}`, token_type: 'Bearer', expires_in: 900, user: { id: 'u1', email: 'a@example.com', name: 'A', role: 'admin', disabled: false, created_at: '' } })
const json = (body: unknown, status = 200) => new Response(JSON.stringify(body), { status, headers: { 'content-type': 'application/json' } })

/** A service that takes the newest tokens only, and ends the session when an old refresh token comes back. */
function service() {
  let newest = 1
  const state = { refreshes: 0, reused: 0, ended: false, keys: [] as (string | null)[], expire: () => (newest = newest), accept: 'a1' }
  const fetch = vi.fn(async (input: Request | string, init?: RequestInit) => {
    const url = typeof input === 'string' ? input : input.url
    if (url.endsWith('/v1/auth/refresh')) {
      await Promise.resolve()
      const { refresh_token } = JSON.parse(String(init?.body))
      if (refresh_token !== `r${newest}` || state.ended) {
        state.reused++
        state.ended = true
        return json({ code: 'refresh_reused' }, 401)
      }
      newest++
      state.refreshes++
      state.accept = `a${newest}`
      return json(session(newest))
    }
    const request = input as Request
    state.keys.push(request.headers.get('idempotency-key'))
    return request.headers.get('authorization') === `Bearer ${state.accept}` ? json({ fine: true }) : json({ code: 'unauthenticated' }, 401)
  })
  vi.stubGlobal('fetch', fetch)
  return { state, fetch }
}

async function page() {
  vi.resetModules()
  const [client, tokens] = [await import('@/api/client'), await import('@/session/tokens')]
  return { ...client, ...tokens }
}

beforeEach(() => { localStorage.clear(); sessionStorage.clear() })
afterEach(() => vi.unstubAllGlobals())

describe('a session', () => {
  test('that ran out is renewed once, however many requests find it out, and each is repeated', async () => {
    const { state } = service()
    const { fetchAs, keep } = await page()
    keep(session(1) as never)
    state.accept = 'gone'
    const answers = await Promise.all([1, 2, 3].map(() => fetchAs(new Request('http://localhost/v1/me'))))
    expect(answers.map((answer) => answer.status)).toEqual([200, 200, 200])
    expect([state.refreshes, state.reused]).toEqual([1, 0])
  })

  test('of two tabs that renew at once is renewed one after the other, never with one token twice', async () => {
    const { state } = service()
    const [one, other] = [await page(), await page()]
    localStorage.setItem('couponbook.refresh', 'r1')
    const answers = await Promise.all([one.refresh(), other.refresh()])
    expect([state.refreshes, state.reused]).toEqual([2, 0])
    expect(new Set(answers.map((answer) => answer.access_token)).size).toBe(2)
  })

  test('that is over is forgotten and said once', async () => {
    const { state } = service()
    const { fetchAs, keep, sessionListener, hasSession } = await page()
    keep(session(1) as never)
    state.accept = 'gone'
    state.ended = true
    sessionListener.ended = vi.fn()
    expect((await fetchAs(new Request('http://localhost/v1/me'))).status).toBe(401)
    expect(sessionListener.ended).toHaveBeenCalledTimes(1)
    expect(hasSession()).toBe(false)
  })

  test('keeps the access token out of storage while the page is there, and hands it over when it goes', async () => {
    service()
    const first = await page()
    first.takeOver()
    first.keep(session(1) as never)
    expect(JSON.stringify({ ...localStorage, ...sessionStorage })).not.toContain('a1')
    dispatchEvent(new Event('pagehide'))
    const second = await page()
    second.takeOver()
    expect(second.accessToken()).toBe('a1')
    expect(sessionStorage.length).toBe(0)
  })
})

test('a POST whose answer was lost is sent again with the same key; a PATCH is not', async () => {
  vi.useFakeTimers()
  const seen: (string | null)[] = []
  vi.stubGlobal('fetch', vi.fn(async (request: Request) => {
    seen.push(request.headers.get('idempotency-key'))
    if (seen.length === 1) throw new TypeError('network')
    return json({})
  }))
  const { fetchAs, keep } = await page()
  keep(session(1) as never)
  const answer = fetchAs(new Request('http://localhost/v1/books', { method: 'POST' }))
  await vi.runAllTimersAsync()
  expect((await answer).status).toBe(200)
  expect(seen).toHaveLength(2)
  expect(seen[0]).toBeTruthy()
  expect(seen[0]).toBe(seen[1])
  seen.length = 0
  await expect(fetchAs(new Request('http://localhost/v1/books/1', { method: 'PATCH' }))).rejects.toMatchObject({ code: 'unreachable' })
  vi.useRealTimers()
})
