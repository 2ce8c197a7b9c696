/**
 * The one way to the service: typed by the OpenAPI document, with the manners that every request shares.
 *
 * - The access token goes along; a 401 is answered by one refresh and one repetition, and then by signing in again.
 * - Every POST carries an Idempotency-Key, so a request whose answer was lost is simply sent again.
 * - Whatever is no success is thrown as a `Problem`.
 */
import createClient from 'openapi-fetch'
import { accessToken, forget, hasSession, refresh, type Session } from '@/session/tokens'
import { noteServerTime } from './clock'
import { Problem, problemOf, unreachable } from './problem'
import { randomKey } from './random'
import type { components, paths } from './schema'

export type Schemas = components['schemas']

/** Told when a session has ended although nobody signed out, and when it was renewed. */
export const sessionListener = {
  ended: () => {},
  renewed: (_session: Session) => {},
}

const RETRIES_MS = [300, 1_200] // a phone that changes cells, a service that is being restarted

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))

/** Sends a request, again after trouble on the way if it does no harm. */
async function send(request: Request): Promise<Response> {
  const repeatable = request.method === 'GET' || request.headers.has('idempotency-key')
  for (let attempt = 0; ; attempt++) {
    const wait = repeatable ? RETRIES_MS[attempt] : undefined
    try {
      const response = await fetch(request.clone())
      noteServerTime(response.headers.get('date'))
      const again = response.status === 502 || response.status === 503 || response.status === 504
      if (!again || wait === undefined) return response
    } catch (error) {
      if (request.signal.aborted) throw error
      if (wait === undefined) throw unreachable()
    }
    await pause(wait)
  }
}

/** Renews the session once; false when it is over. Trouble on the way is thrown. */
export async function renew(): Promise<boolean> {
  try {
    sessionListener.renewed(await refresh())
    return true
  } catch (error) {
    if (!(error instanceof Problem) || error.status !== 401) throw error
    forget()
    sessionListener.ended()
    return false
  }
}

/** `fetch` with this page's session. */
export async function fetchAs(request: Request): Promise<Response> {
  if (request.method === 'POST' && !request.headers.has('idempotency-key') && !request.url.includes('/v1/auth/')) {
    request.headers.set('idempotency-key', randomKey())
  }
  const withToken = () => {
    const token = accessToken()
    const copy = request.clone()
    if (token !== null) copy.headers.set('authorization', `Bearer ${token}`)
    return copy
  }
  if (accessToken() === null && hasSession() && !request.url.includes('/v1/auth/')) await renew()
  const used = accessToken()
  const response = await send(withToken())
  if (response.status !== 401 || used === null || request.url.includes('/v1/auth/')) return response
  // Another request may have renewed it meanwhile.
  if (accessToken() !== used || (await renew())) return send(withToken())
  return response
}

export const api = createClient<paths>({ baseUrl: location.origin, fetch: fetchAs })

type Answer<T> = { data?: T; error?: unknown; response: Response }

/** The body of an answer, or its problem thrown. */
export async function body<T>(answer: Promise<Answer<T>>): Promise<T> {
  const { data, response } = await answer
  if (!response.ok) throw await reread(answer)
  return data as T
}

/** The body with its ETag, for a change that must not overwrite somebody else's. */
export async function tagged<T>(answer: Promise<Answer<T>>): Promise<{ value: T; etag: string | null }> {
  const value = await body(answer)
  return { value, etag: (await answer).response.headers.get('etag') }
}

/** openapi-fetch has read the body already: what it found is the problem. */
async function reread(answer: Promise<Answer<unknown>>): Promise<Problem> {
  const { error, response } = await answer
  const text = typeof error === 'string' ? error : JSON.stringify(error ?? '')
  return problemOf(new Response(text, { status: response.status, headers: response.headers }))
}
