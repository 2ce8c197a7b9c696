/**
 * One use of a coupon, from taking the lock to its end.
 *
 *   locking → open → redeeming → done
 *                 ↘ lapsed (nothing was used)
 *
 * Invariant: the lock's token stays in this tab (sessionStorage), so a reload finds its own lock again, and whatever
 * the network does, a repeated redemption with the token is the same redemption.
 */
import { onScopeDispose, ref, shallowRef, watch } from 'vue'
import { api, body, type Schemas } from '@/api/client'
import { noteServerTime, serverNow } from '@/api/clock'
import { asProblem, type Problem } from '@/api/problem'
import { useCountdown } from './countdown'

export type HeldCoupon = Schemas['HeldCoupon']
export type Phase = 'locking' | 'open' | 'redeeming' | 'done' | 'lapsed' | 'refused'

interface KeptLock {
  token: string
  until: string
  whole: number
  renewals: number
}

const place = (coupon: HeldCoupon) => `couponbook.lock.${coupon.book_id}.${coupon.code}`

/** The lock that this tab holds on a coupon, while it lasts. */
export function keptLock(coupon: HeldCoupon): KeptLock | null {
  try {
    const kept = JSON.parse(sessionStorage.getItem(place(coupon)) ?? 'null') as KeptLock | null
    return kept && Date.parse(kept.until) > serverNow() ? kept : null
  } catch {
    return null
  }
}

export function useTill(coupon: HeldCoupon, userId: string | undefined) {
  const phase = ref<Phase>('locking')
  const problem = shallowRef<Problem | null>(null)
  const redemption = shallowRef<Schemas['Redemption'] | null>(null)
  const renewals = ref(0)
  const lockSeconds = ref(300)
  const countdown = useCountdown()
  const needsLock = coupon.book.require_lock
  let token: string | undefined

  const at = { path: { code: coupon.code } }
  const whose = { book_id: coupon.book_id, user_id: userId }

  async function lock(renewing = false): Promise<void> {
    problem.value = null
    const asked = performance.now()
    try {
      const lock = await body(api.POST('/v1/coupons/lock/{code}', { params: at, body: { ...whose, lock_token: renewing ? token : undefined } }))
      const trip = (performance.now() - asked) / 2
      noteServerTime(lock.server_time, true)
      token = lock.lock_token
      renewals.value = lock.renewals_left
      const seconds = (Date.parse(lock.locked_until) - Date.parse(lock.server_time)) / 1_000
      lockSeconds.value = seconds
      countdown.start(seconds, seconds, trip)
      const kept: KeptLock = { token, until: lock.locked_until, whole: seconds, renewals: renewals.value }
      sessionStorage.setItem(place(coupon), JSON.stringify(kept))
      phase.value = 'open'
    } catch (error) {
      problem.value = asProblem(error)
      if (problem.value.code === 'lock_expired') lapse()
      else if (!renewing) phase.value = 'refused'
    }
  }

  /** Takes the lock, or goes on with the one that this tab has. */
  async function open(): Promise<void> {
    phase.value = 'locking'
    if (!needsLock) {
      phase.value = 'open'
      return
    }
    const kept = keptLock(coupon)
    if (!kept) return lock()
    token = kept.token
    renewals.value = kept.renewals
    lockSeconds.value = kept.whole
    countdown.start((Date.parse(kept.until) - serverNow()) / 1_000, kept.whole)
    phase.value = 'open'
  }

  async function redeem(): Promise<void> {
    if (phase.value !== 'open') return
    phase.value = 'redeeming'
    problem.value = null
    try {
      redemption.value = await body(api.POST('/v1/coupons/redeem/{code}', { params: at, body: { ...whose, lock_token: token } }))
      forgetLock()
      phase.value = 'done'
    } catch (error) {
      problem.value = asProblem(error)
      if (problem.value.code === 'lock_expired') lapse()
      else phase.value = 'open'
    }
  }

  /** Gives the lock back; whatever comes of it, the page goes on: it lapses by itself. */
  async function giveBack(): Promise<void> {
    const spent = token
    if (spent === undefined || phase.value === 'done' || phase.value === 'lapsed') return
    forgetLock()
    await api.POST('/v1/coupons/unlock/{code}', { params: at, body: { book_id: coupon.book_id, lock_token: spent } }).catch(() => {})
  }

  function forgetLock(): void {
    token = undefined
    countdown.stop()
    sessionStorage.removeItem(place(coupon))
  }

  function lapse(): void {
    forgetLock()
    problem.value = null
    phase.value = 'lapsed'
  }

  watch(countdown.isOver, (over) => {
    // A redemption that is on its way is answered by the service, whose clock decides.
    if (over && phase.value === 'open') lapse()
  })
  onScopeDispose(() => countdown.stop())

  return { phase, problem, redemption, renewals, lockSeconds, needsLock, countdown, open, redeem, giveBack, renew: () => lock(true) }
}
