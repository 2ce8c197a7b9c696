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

// --- generating
export interface Pattern {
  pattern: string
  alphabet?: string
  check?: boolean
  count: number
}
export interface Preview {
  space: number | string
  density: number
  guess_odds: number | string
  sample: string[]
  ok: boolean
  needed_length?: number | null
  /** What to mind, for people. */
  warning?: string | null
}
export const codes = {
  preview: (bookId: string, pattern: Pattern) => call<Preview>('POST', `/v1/books/${bookId}/codes/preview`, { body: pattern }),
  generate: (bookId: string, wanted: Partial<Pattern> & { count: number; expires_at?: string }) => call<Job>('POST', `/v1/books/${bookId}/codes/generate`, { body: wanted }),
}

// --- pools
export interface Pool {
  id: string
  name: string
  description: string
  members: number
  created_at: string
}
export interface Member {
  user_id: string
  email: string
  name: string
  disabled: boolean
  added_at: string
}
export const pools = {
  list: (cursor?: string) => call<Page<Pool>>('GET', '/v1/pools', { query: { cursor, limit: 100 } }),
  get: (id: string) => call<Pool>('GET', `/v1/pools/${id}`),
  create: (pool: { name: string; description?: string }) => call<Pool>('POST', '/v1/pools', { body: pool }),
  change: (id: string, pool: { name?: string; description?: string }) => call<Pool>('PATCH', `/v1/pools/${id}`, { body: pool }),
  remove: (id: string) => call<void>('DELETE', `/v1/pools/${id}`),
  members: (id: string, cursor?: string) => call<Page<Member>>('GET', `/v1/pools/${id}/members`, { query: { cursor, limit: 100 } }),
  add: (id: string, userIds: string[]) => call<unknown>('POST', `/v1/pools/${id}/members`, { body: { user_ids: userIds } }),
  drop: (id: string, userIds: string[]) => call<unknown>('DELETE', `/v1/pools/${id}/members`, { body: { user_ids: userIds } }),
}

// --- distributions
export type Mode = 'equal' | 'random' | 'top_up'
export interface NewDistribution {
  book_id: string
  pool_id: string
  mode: Mode
  per_user?: number
  total?: number
  max_per_user?: number
  on_shortage: 'fail' | 'partial'
}
export interface Distribution extends Omit<NewDistribution, 'per_user' | 'total' | 'max_per_user'> {
  id: string
  per_user: number | null
  total: number | null
  max_per_user: number | null
  state: string
  seed_commitment: string | null
  counts: Record<string, number>
  job_id: string | null
  schedule_id: string | null
  created_at: string
}
export interface Plan {
  recipients: number
  excluded: { reason: string; count: number }[]
  codes_needed: number
  codes_free: number
  shortfall: number
  sample: { user_id: string; count?: number; email?: string; name?: string }[]
  seed_commitment: string
}
export interface DistributionItem {
  user_id: string
  wanted: number
  assigned: number
  undone: number
  state: string
  reason: string | null
}
export const distributions = {
  list: (query: { cursor?: string; book_id?: string }) => call<Page<Distribution>>('GET', '/v1/distributions', { query }),
  get: (id: string) => call<Distribution>('GET', `/v1/distributions/${id}`),
  items: (id: string, cursor?: string) => call<Page<DistributionItem>>('GET', `/v1/distributions/${id}/items`, { query: { cursor } }),
  plan: (wanted: NewDistribution) => call<Plan>('POST', '/v1/distributions', { query: { dry_run: true }, body: wanted }),
  run: (wanted: NewDistribution) => call<Job>('POST', '/v1/distributions', { body: wanted }),
  undo: (id: string) => call<Job>('POST', `/v1/distributions/${id}/undo`, { body: {} }),
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

// --- exports
export interface NewExport {
  kind: 'coupons' | 'redemptions'
  book_id: string
  state?: string
}
export const exportsOf = {
  create: (wanted: NewExport) => call<Job>('POST', '/v1/exports', { body: wanted }),
  file: (id: string) => `/v1/exports/${id}/file`,
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
