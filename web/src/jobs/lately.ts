/**
 * Jobs that ended badly within the last day: trouble of last month keeps nobody's attention. The list is read again when
 * the number of such jobs has changed, which the service tells cheaply every few seconds.
 */
import { keepPreviousData, useQuery } from '@tanstack/vue-query'
import { computed } from 'vue'
import { api, body } from '@/api/client'
import { every } from '@/api/queries'
import { number } from '@/ui/format'
import { useNow } from '@/ui/now'
import type { Job } from './job'

const DAY_MS = 86_400_000
/** The most that are read; where there are more, the number of them does not matter. */
const MOST = 50

export const endedLately = (jobs: Job[], now: number): Job[] => jobs.filter((job) => job.finished_at !== null && Date.parse(job.finished_at) > now - DAY_MS)

export const useJobCounts = () => useQuery({ queryKey: ['job-counts'], queryFn: () => body(api.GET('/v1/jobs/counts')), refetchInterval: every(5_000) })

export function useLately(state: 'failed' | 'partially_succeeded') {
  const now = useNow()
  const counts = useJobCounts()
  const query = useQuery({
    queryKey: computed(() => ['job-list', state, counts.data.value?.[state]]),
    queryFn: () => body(api.GET('/v1/jobs', { params: { query: { state, limit: MOST } } })),
    enabled: computed(() => !counts.isPending.value),
    placeholderData: keepPreviousData,
    refetchInterval: every(60_000),
  })
  const jobs = computed(() => endedLately(query.data.value?.data ?? [], now.value))
  const figure = computed(() => (query.data.value === undefined ? '–' : jobs.value.length === MOST ? `${MOST}+` : number(jobs.value.length)))
  return { query, jobs, figure }
}
