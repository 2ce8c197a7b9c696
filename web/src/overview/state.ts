/** How the service stands: what is left, what was done of the first steps, what needs somebody. */
import { useQuery } from '@tanstack/vue-query'
import { computed } from 'vue'
import { api, body } from '@/api/client'
import { distributions } from '@/api/distributions'
import { pools } from '@/api/pools'
import { every } from '@/api/queries'
import { useLately } from '@/jobs/lately'

/** The share of its codes under which a book needs more. */
const LOW = 0.1

export function useServiceState() {
  const books = useQuery({ queryKey: ['books', 'overview'], queryFn: () => body(api.GET('/v1/books', { params: { query: { status: 'active', limit: 20 } } })), refetchInterval: every(15_000) })
  const eachBook = useQuery({
    queryKey: computed(() => ['stats', 'overview', books.data.value?.data.map((book) => book.id)]),
    queryFn: async () => Promise.all((books.data.value?.data ?? []).map(async (book) => ({ book, stats: await body(api.GET('/v1/books/{id}/stats', { params: { path: { id: book.id } } })) }))),
    enabled: computed(() => books.data.value !== undefined),
    refetchInterval: every(15_000),
  })
  const failed = useLately('failed')
  const partial = useLately('partially_succeeded')
  const allPools = useQuery({ queryKey: ['pools', 'pick'], queryFn: () => pools.list(), retry: false })
  const given = useQuery({ queryKey: ['distributions', 'first'], queryFn: () => distributions.list({}), retry: false })

  const sum = (name: 'total' | 'unassigned' | 'redemptions') => eachBook.data.value?.reduce((all, { stats }) => all + stats[name], 0)
  /** Of the active books; unknown where there are more than were asked for. */
  const free = computed(() => (books.data.value?.next_cursor ? undefined : sum('unassigned')))
  const low = computed(() => (eachBook.data.value ?? []).filter(({ stats }) => stats.total > 0 && stats.unassigned < stats.total * LOW))
  const jobs = computed(() => [...failed.jobs.value.slice(0, 5), ...partial.jobs.value.slice(0, 3)])

  const first = computed(() => books.data.value?.data[0])
  const steps = computed(() => [
    { name: 'book', done: first.value !== undefined, to: { name: 'new-book' } },
    { name: 'codes', done: (sum('total') ?? 0) > 0, to: first.value ? { name: 'import', params: { id: first.value.id } } : { name: 'new-book' } },
    { name: 'pool', done: (allPools.data.value?.data.length ?? 0) > 0, to: { name: 'pools', query: { new: '' } } },
    { name: 'distribute', done: (given.data.value?.data.length ?? 0) > 0, to: { name: 'distribute' } },
    { name: 'redeem', done: (sum('redemptions') ?? 0) > 0, to: { name: 'users' } },
  ])
  const isChecked = computed(() => eachBook.data.value !== undefined && allPools.data.value !== undefined && given.data.value !== undefined)

  /** Nothing is known to be fine before everything was read. */
  const watched = [eachBook, failed.query, partial.query]
  const isKnown = computed(() => watched.every((query) => query.data.value !== undefined))
  const unread = computed(() => [books, ...watched].find((query) => query.error.value !== null && query.data.value === undefined))
  /** Everything was answered somehow, so that nothing that is drawn moves afterwards. */
  const isSettled = computed(() => ![books, failed.query, partial.query, allPools, given].some((query) => query.isPending.value) && (books.data.value === undefined || !eachBook.isPending.value))
  function again() {
    for (const query of [books, ...watched]) if (query.error.value) void query.refetch()
  }
  return { failed, free, low, jobs, steps, isChecked, isKnown, isSettled, unread, again }
}
