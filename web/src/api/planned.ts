/**
 * Operations that docs/openapi.json does not describe yet, in the shapes that the contract promises. Once the document
 * has one of them, its types come from there (`npm run types`) and its lines here go. A service without it answers 404,
 * which the screens show as it is.
 */
import { fetchAs, type Schemas } from './client'
import { problemOf } from './problem'

type Query = Record<string, string | number | boolean | undefined | null>
type Page<T> = { data: T[]; next_cursor: string | null }
type Job = Schemas['Job']

async function call<T>(method: string, path: string, options: { query?: Query; body?: unknown; etag?: string | null } = {}): Promise<T> {
  const url = new URL(path, location.origin)
  for (const [name, value] of Object.entries(options.query ?? {})) {
    if (value !== undefined && value !== null && value !== '') url.searchParams.set(name, String(value))
  }
  const headers = new Headers()
  if (options.body !== undefined) headers.set('content-type', 'application/json')
  if (options.etag) headers.set('if-match', options.etag)
  const response = await fetchAs(new Request(url, { method, headers, body: options.body === undefined ? undefined : JSON.stringify(options.body) }))
  if (!response.ok) throw await problemOf(response)
  return (response.status === 204 ? undefined : await response.json()) as T
}

// --- webhooks and the audit chain
export interface Webhook {
  id: string
  url: string
  [member: string]: unknown
}
export const webhooks = {
  list: () => call<Page<Webhook>>('GET', '/v1/webhooks'),
  create: (hook: { url: string }) => call<Webhook & { secret?: string }>('POST', '/v1/webhooks', { body: hook }),
  remove: (id: string) => call<void>('DELETE', `/v1/webhooks/${id}`),
  test: (id: string) => call<unknown>('POST', `/v1/webhooks/${id}/test`, { body: {} }),
}
export const audit = { verify: () => call<Job>('POST', '/v1/audit/verify', { body: {} }) }
