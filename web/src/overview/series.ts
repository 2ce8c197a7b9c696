/** The whole service over time: lines for the charts, sums for the tiles. */
import { useQuery } from '@tanstack/vue-query'
import { computed } from 'vue'
import { useI18n } from 'vue-i18n'
import { serverNow } from '@/api/clock'
import { every } from '@/api/queries'
import { stats } from '@/api/series'

export function useServiceSeries() {
  const { t } = useI18n()
  const query = useQuery({ queryKey: ['series', 'service'], queryFn: () => stats.service({}), refetchInterval: every(30_000), retry: false })
  const points = computed(() => query.data.value?.points ?? [])
  const last = computed(() => points.value[points.value.length - 1])
  const times = computed(() => points.value.map((point) => Date.parse(point.at) / 1_000))

  const funnel = computed(() => [
    { name: t('state.coupon.unassigned'), values: points.value.map((point) => point.unassigned), colour: '--chart-4' },
    { name: t('state.coupon.assigned'), values: points.value.map((point) => point.assigned + point.locked), colour: '--chart-1', fill: true },
    { name: t('state.coupon.redeemed'), values: points.value.map((point) => point.redeemed), colour: '--chart-2', fill: true },
  ])
  const throughput = computed(() => [
    { name: t('overview.assigned'), values: points.value.map((point) => point.assigned_count), colour: '--chart-1' },
    { name: t('overview.redeemed'), values: points.value.map((point) => point.redeemed_count), colour: '--chart-2' },
    { name: t('overview.jobsEnded'), values: points.value.map((point) => point.jobs.reduce((all, job) => all + job.succeeded_count + job.partially_succeeded_count + job.failed_count + job.cancelled_count, 0)), colour: '--chart-3' },
  ])

  /** Of the reader's day so far; unknown while nothing was read. */
  function today(name: 'assigned_count' | 'redeemed_count'): number | undefined {
    if (!query.data.value) return undefined
    const midnight = new Date(serverNow()).setHours(0, 0, 0, 0)
    return points.value.filter((point) => Date.parse(point.at) >= midnight).reduce((all, point) => all + point[name], 0)
  }
  return { query, last, times, funnel, throughput, today }
}
