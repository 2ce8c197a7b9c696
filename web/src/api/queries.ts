/** How what was read is kept and asked for again. */
import { QueryClient } from '@tanstack/vue-query'
import { toValue, type MaybeRefOrGetter } from 'vue'
import { live } from '@/frame/live'
import { Problem } from './problem'

const SLOWEST_MS = 30_000

export const queries = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 2_000,
      refetchOnWindowFocus: true,
      networkMode: 'always', // the service may be on this very machine
      // Passing trouble was tried again by the client already; the interval goes on trying.
      retry: (failures, error) => failures < 1 && error instanceof Problem && error.status >= 500,
    },
    mutations: { retry: false, networkMode: 'always' },
  },
})

interface Polled {
  state: { fetchFailureCount: number; status: string; error: unknown }
}

/**
 * Asks again every so often: not while the page is hidden or paused, less and less often while the service does not
 * answer, and no more once it has said that there is nothing.
 */
export function every(milliseconds: MaybeRefOrGetter<number | false>) {
  return (query: Polled): number | false => {
    const wanted = toValue(milliseconds)
    if (!live.value || wanted === false) return false
    const error = query.state.error
    if (error instanceof Problem && (error.status === 404 || error.status === 403)) return false
    const failures = query.state.status === 'error' ? Math.max(1, query.state.fetchFailureCount) : 0
    return Math.min(wanted * 2 ** failures, Math.max(wanted, SLOWEST_MS))
  }
}
