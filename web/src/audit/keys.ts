/** API keys by their id: there are few. */
import { useQuery } from '@tanstack/vue-query'
import { api, body } from '@/api/client'

export function useKeyNames(enabled: () => boolean = () => true) {
  const keys = useQuery({ queryKey: ['api-keys', 'names'], queryFn: () => body(api.GET('/v1/api-keys', { params: { query: { limit: 100 } } })), staleTime: 60_000, retry: false, enabled })
  const nameOf = (id: string) => keys.data.value?.data.find((key) => key.id === id)?.name
  return { keys, nameOf }
}
