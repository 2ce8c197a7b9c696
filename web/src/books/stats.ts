/** A book's coupons by state. */
import { useQuery } from '@tanstack/vue-query'
import { computed, toValue, type MaybeRefOrGetter } from 'vue'
import { api, body } from '@/api/client'
import { every } from '@/api/queries'

export const STATES = ['unassigned', 'assigned', 'locked', 'redeemed', 'void'] as const

export function useStats(id: MaybeRefOrGetter<string>, interval = 5_000) {
  return useQuery({
    queryKey: computed(() => ['stats', toValue(id)]),
    queryFn: () => body(api.GET('/v1/books/{id}/stats', { params: { path: { id: toValue(id) } } })),
    refetchInterval: every(interval),
    enabled: computed(() => Boolean(toValue(id))),
  })
}
