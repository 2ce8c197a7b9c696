/** When a schedule runs, in words. */
import { useI18n } from 'vue-i18n'
import { moment } from '@/ui/format'
import { fromCron } from './cron'

const twoDigits = (value: number) => String(value).padStart(2, '0')

export function useRhythm() {
  const { t } = useI18n()
  return (schedule: { cron?: string | null; run_at?: string | null; time_zone: string }): string => {
    if (schedule.run_at) return t('schedules.once', { at: moment(schedule.run_at, schedule.time_zone) })
    const rhythm = fromCron(schedule.cron ?? '')
    if (!rhythm) return schedule.cron ?? ''
    const time = 'hour' in rhythm ? `${twoDigits(rhythm.hour)}:${twoDigits(rhythm.minute)}` : ''
    const zone = schedule.time_zone
    switch (rhythm.every) {
      case 'hour': return t('schedules.hourly', { minute: twoDigits(rhythm.minute) })
      case 'day': return t('schedules.daily', { time, zone })
      case 'weekday': return t('schedules.weekdays', { time, zone })
      case 'week': return t('schedules.weekly', { day: t(`weekday.${rhythm.day}`), time, zone })
      case 'month': return t('schedules.monthly', { date: rhythm.date, time, zone })
    }
  }
}
