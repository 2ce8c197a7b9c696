import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { createApp, defineComponent, h, nextTick, type App } from 'vue'
import HoldButton from '@/holder/HoldButton.vue'
import { keptLock, useTill, type HeldCoupon } from '@/holder/till'
import { i18n } from '@/i18n'

const coupon = { code: 'A-1', book_id: 'b1', state: 'assigned', redemptions_used: 0, redemptions_allowed: 1, book: { name: 'Spring', status: 'active', require_lock: true, starts_at: null, ends_at: null } } as unknown as HeldCoupon
const json = (body: unknown, status = 200, headers = {}) => new Response(JSON.stringify(body), { status, headers: { 'content-type': 'application/json', ...headers } })
let apps: App[] = []

function within<T>(use: () => T): T {
  let made!: T
  const app = createApp(defineComponent({ setup() { made = use(); return () => h('i') } }))
  app.use(i18n).mount(document.createElement('div'))
  apps.push(app)
  return made
}
/** The service's clock is an hour behind the browser's. */
const HOUR = 3_600_000
function answering(answers: Record<string, () => Response>) {
  const asked: { path: string; body: Record<string, unknown> }[] = []
  vi.stubGlobal('fetch', vi.fn(async (request: Request) => {
    const path = new URL(request.url).pathname
    asked.push({ path, body: await request.clone().json() })
    const answer = Object.entries(answers).find(([part]) => path.includes(part))
    return answer ? answer[1]() : json({}, 404)
  }))
  return asked
}
const lock = (seconds: number) => () => {
  const now = Date.now() - HOUR
  return json({ code: 'A-1', book_id: 'b1', lock_token: 'secret', server_time: new Date(now).toISOString(), locked_until: new Date(now + seconds * 1_000).toISOString(), renewals_left: 2 })
}
beforeEach(() => { sessionStorage.clear(); vi.useFakeTimers() })
afterEach(() => { apps.forEach((app) => app.unmount()); apps = []; vi.useRealTimers(); vi.unstubAllGlobals() })

describe('a use of a coupon', () => {
  test('counts down by the clock of the service, though the browser’s is an hour ahead', async () => {
    answering({ '/lock/': lock(300) })
    const till = within(() => useTill(coupon, undefined))
    await till.open()
    await vi.advanceTimersByTimeAsync(10_000)
    expect(till.countdown.left.value).toBeGreaterThan(289)
    expect(till.countdown.left.value).toBeLessThanOrEqual(290.2)
  })

  test('that runs out says that nothing was used, and forgets the lock', async () => {
    answering({ '/lock/': lock(5) })
    const till = within(() => useTill(coupon, undefined))
    await till.open()
    expect(keptLock(coupon)).not.toBeNull()
    await vi.advanceTimersByTimeAsync(5_400)
    await nextTick()
    expect(till.phase.value).toBe('lapsed')
    expect(sessionStorage.length).toBe(0)
  })

  test('goes on after a reload with the lock that this tab has', async () => {
    const asked = answering({ '/lock/': lock(300), '/redeem/': () => json({ id: 'r1', redeemed_at: new Date().toISOString() }) })
    await within(() => useTill(coupon, undefined)).open()
    const again = within(() => useTill(coupon, 'u1'))
    await again.open()
    expect(asked.filter(({ path }) => path.includes('/lock/'))).toHaveLength(1)
    await again.redeem()
    expect(again.phase.value).toBe('done')
    expect(asked[asked.length - 1]!.body).toMatchObject({ lock_token: 'secret', book_id: 'b1', user_id: 'u1' })
  })

  test('whose lock the service calls lapsed has lapsed, whatever this clock says', async () => {
    answering({ '/lock/': lock(300), '/redeem/': () => json({ code: 'lock_expired' }, 409) })
    const till = within(() => useTill(coupon, undefined))
    await till.open()
    await till.redeem()
    expect(till.phase.value).toBe('lapsed')
  })

  test('that is refused stays open with the reason', async () => {
    answering({ '/lock/': lock(300), '/redeem/': () => json({ code: 'redemption_limit_reached' }, 409) })
    const till = within(() => useTill(coupon, undefined))
    await till.open()
    await till.redeem()
    expect([till.phase.value, till.problem.value?.code]).toEqual(['open', 'redemption_limit_reached'])
  })
})

describe('the button that spends', () => {
  function button() {
    const done = vi.fn()
    const ask = vi.fn()
    const place = document.createElement('div')
    const app = createApp({ render: () => h(HoldButton, { busy: false, disabled: false, onDone: done, onAsk: ask }) })
    app.use(i18n).mount(place)
    apps.push(app)
    return { done, ask, element: place.querySelector('button')! }
  }
  const pointer = (type: string) => Object.assign(new Event(type, { bubbles: true }), { button: 0, pointerId: 1 })

  test('does nothing for a slip of the thumb, and its work when it is held', async () => {
    const { done, element } = button()
    element.dispatchEvent(pointer('pointerdown'))
    await vi.advanceTimersByTimeAsync(400)
    element.dispatchEvent(pointer('pointerup'))
    await vi.advanceTimersByTimeAsync(1_000)
    expect(done).not.toHaveBeenCalled()
    element.dispatchEvent(pointer('pointerdown'))
    await vi.advanceTimersByTimeAsync(620)
    expect(done).toHaveBeenCalledTimes(1)
  })
  test('asks who pressed a key', () => {
    const { ask, done, element } = button()
    element.dispatchEvent(new MouseEvent('click', { detail: 0, bubbles: true }))
    expect(ask).toHaveBeenCalledTimes(1)
    element.dispatchEvent(new MouseEvent('click', { detail: 1, bubbles: true }))
    expect([ask.mock.calls.length, done.mock.calls.length]).toEqual([1, 0])
  })
})
