/** A job as a screen follows it. */
import { useQuery, useQueryClient } from '@tanstack/vue-query'
import { computed, toValue, watch, type MaybeRefOrGetter } from 'vue'
import { api, body, type Schemas } from '@/api/client'
import { Problem } from '@/api/problem'
import { every } from '@/api/queries'

export type Job = Schemas['Job']

/**
 * Polled, not streamed: a browser opens six connections to a service, and a page with several running jobs would use
 * them up. Less than a second, so that what is on the screen is never older.
 */
const POLL_MS = 400

const FINAL = ['succeeded', 'partially_succeeded', 'failed', 'cancelled']
export const hasEnded = (job: Job | undefined): boolean => job !== undefined && FINAL.includes(job.state)

/** What a finished job may have changed. */
const CHANGED = ['books', 'book', 'stats', 'coupons', 'series', 'job-list', 'job-counts', 'distributions', 'distribution', 'pool', 'pools', 'held', 'audit']

export function useJob(id: MaybeRefOrGetter<string | null | undefined>) {
  const cache = useQueryClient()
  const poll = every(POLL_MS)
  const query = useQuery({
    queryKey: computed(() => ['job', toValue(id)]),
    queryFn: () => body(api.GET('/v1/jobs/{id}', { params: { path: { id: toValue(id)! } } })),
    enabled: computed(() => Boolean(toValue(id))),
    refetchInterval: (query) => (hasEnded(query.state.data) ? false : poll(query)),
    staleTime: 0,
  })
  watch(() => hasEnded(query.data.value), (ended, before) => {
    if (ended && before === false && query.data.value) {
      for (const key of CHANGED) void cache.invalidateQueries({ queryKey: [key] })
    }
  })
  return query
}

/** Why a job failed, as a problem to show. */
export function failure(job: Job): Problem | null {
  return job.error ? new Problem({ code: job.error.code, detail: job.error.detail }, 200) : null
}
