/** Jobs in words. */
import { useI18n } from 'vue-i18n'
import { compact, duration, number } from '@/ui/format'
import type { Job } from './job'

/** The whole first, then what went well. */
const ORDER = ['rows', 'accepted', 'generated', 'assigned', 'recipients', 'codes']
const rank = (name: string) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length)

export function useJobWords() {
  const { t, te } = useI18n()

  const kind = (job: { kind: string }): string => (te(`kind.${job.kind}`) ? t(`kind.${job.kind}`) : job.kind.replaceAll('_', ' '))

  /** `412,380 of 1,000,000 · 58k rows/s · about 10 s left`. */
  function progress(job: Job): string {
    const { done, total, unit, rate, eta_seconds } = job.progress
    const parts = [total === null ? `${number(done)} ${unit}` : t('job.of', { done: number(done), total: number(total) })]
    if (rate !== null && rate > 0 && job.state === 'running') parts.push(`${compact(rate)} ${unit}/s`)
    if (eta_seconds !== null && job.state === 'running') parts.push(t('job.left', { time: duration(eta_seconds) }))
    return parts.join(' · ')
  }

  const counter = (name: string): string => (te(`counter.${name}`) ? t(`counter.${name}`) : name.replaceAll('_', ' '))

  /** The counters of a job, without those that are its total. */
  function counters(job: Job): { name: string; word: string; value: number }[] {
    return Object.entries(job.counts ?? {})
      .filter(([, value]) => typeof value === 'number')
      .sort(([a], [b]) => rank(a) - rank(b))
      .map(([name, value]) => ({ name, word: counter(name), value: value as number }))
  }
  const reason = (name: string): string => (te(`reason.${name}`) ? t(`reason.${name}`) : name.replaceAll('_', ' '))

  return { kind, progress, counters, counter, reason }
}
