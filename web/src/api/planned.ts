/**
 * Operations that docs/openapi.json does not describe yet, in the shapes that the contract promises. Once the document
 * has one of them, its types come from there (`npm run types`) and its lines here go. A service without it answers 404,
 * which the screens show as it is.
 */
import { fetchAs, type Schemas } from './client'
import type { NewDistribution } from './distributions'
import type { NewExport } from './exports'
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

// --- schedules
export interface NewSchedule {
  name: string
  kind: 'distribution' | 'export'
  distribution?: NewDistribution
  export?: NewExport
  run_at?: string
  cron?: string
  time_zone: string
  missed: 'skip' | 'run_once'
  overlap: 'skip' | 'queue'
  ends_at?: string
  paused?: boolean
}
export interface Schedule extends Omit<NewSchedule, 'run_at' | 'cron' | 'ends_at'> {
  id: string
  run_at: string | null
  cron: string | null
  ends_at: string | null
  paused: boolean
  next_fire_at: string | null
  last_fire: unknown
}
export const schedules = {
  list: (cursor?: string) => call<Page<Schedule>>('GET', '/v1/schedules', { query: { cursor } }),
  get: (id: string) => call<Schedule>('GET', `/v1/schedules/${id}`),
  create: (schedule: NewSchedule) => call<Schedule>('POST', '/v1/schedules', { body: schedule }),
  change: (id: string, change: Partial<NewSchedule>) => call<Schedule>('PATCH', `/v1/schedules/${id}`, { body: change }),
  remove: (id: string) => call<void>('DELETE', `/v1/schedules/${id}`),
  next: (id: string) => call<{ data?: unknown[] } | unknown[]>('GET', `/v1/schedules/${id}/next`, { query: { n: 10 } }),
  run: (id: string) => call<Job>('POST', `/v1/schedules/${id}/run`, { body: {} }),
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
