/**
 * The two tokens of a session.
 *
 * The access token lives in memory. When the page goes away it is left in sessionStorage and taken out again by the
 * next page of the same tab: otherwise each reload would spend a refresh token, and a reload during that request would
 * lose the answer and with it the session.
 *
 * The refresh token lives in localStorage, so that a reload and a second tab stay signed in. sessionStorage is no safer
 * against a script in the page, and worse here: a duplicated tab copies it, both copies are used, and the service takes
 * that for theft. What protects it is the page's policy, which lets no foreign script run.
 *
 * Invariant: a refresh token is read, used and replaced by one tab at a time.
 */
import type { components } from '@/api/schema'
import { Problem, problemOf, unreachable } from '@/api/problem'
import { noteServerTime } from '@/api/clock'
import { alone } from './lock'

export type Session = components['schemas']['Session']
export type User = components['schemas']['User']

const REFRESH = 'couponbook.refresh'
const HANDOVER = 'couponbook.handover'

let access: string | null = null

export function accessToken(): string | null {
  return access
}

export function hasSession(): boolean {
  return access !== null || localStorage.getItem(REFRESH) !== null
}

export function keep(session: Session): void {
  access = session.access_token
  localStorage.setItem(REFRESH, session.refresh_token)
}

export function forget(): void {
  access = null
  localStorage.removeItem(REFRESH)
  sessionStorage.removeItem(HANDOVER)
}

/** The refresh token, for signing out. */
export function refreshToken(): string | null {
  return localStorage.getItem(REFRESH)
}

/** Takes over from the page that was here before, and gets ready to hand over to the next. */
export function takeOver(): void {
  if (localStorage.getItem(REFRESH) !== null) access = sessionStorage.getItem(HANDOVER)
  sessionStorage.removeItem(HANDOVER)
  addEventListener('pagehide', () => {
    if (access !== null) sessionStorage.setItem(HANDOVER, access)
  })
  addEventListener('pageshow', () => sessionStorage.removeItem(HANDOVER))
}

let running: Promise<Session> | null = null

/**
 * Exchanges the refresh token for the next session; however many ask at once, one request is made.
 * Throws a problem: 401 when the session is over, else what kept the request from being answered.
 */
export function refresh(): Promise<Session> {
  running ??= alone('couponbook.refresh', exchange).finally(() => {
    running = null
  })
  return running
}

async function exchange(): Promise<Session> {
  const token = localStorage.getItem(REFRESH) // the newest, also if another tab was here first
  if (token === null) throw new Problem({ code: 'refresh_expired' }, 401)
  let response: Response
  try {
    response = await fetch('/v1/auth/refresh', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ refresh_token: token }),
    })
  } catch {
    throw unreachable()
  }
  noteServerTime(response.headers.get('date'))
  if (!response.ok) {
    const problem = await problemOf(response)
    if (problem.status === 401 && localStorage.getItem(REFRESH) === token) forget()
    throw problem
  }
  const session = (await response.json()) as Session
  keep(session)
  return session
}
